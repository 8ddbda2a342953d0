"""Motion: spectral volumes, softmax splatting, modal dynamics, loop-closure energy."""
