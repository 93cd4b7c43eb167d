"""The codecs: how the values of a section's tensors become bytes. One file a codec.

All work on one flat array of float32: the tensors' values in C order, the tensors in the order of
their names. What each body looks like, byte by byte, its file says.
"""
