"""The parts of `cpu_vs_torch.py`."""
