"""What operations cost: time, FLOPs, memory and counted gradients, measured and returned as records."""
