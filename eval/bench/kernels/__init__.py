"""`vtc bench kernels`: each operation of `vtc.ops` beside plain torch, released loops and the device's bounds."""
