"""Record what a torch model computes."""
