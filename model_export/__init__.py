"""From torch models to what devices hold: programs and blobs."""
