"""What devices and the server say to each other, and how blobs travel between them."""
