"""Trajectories compared: every technique and peer on the same problems, with the same seeds.

`python -m benchmarks` runs the main comparison; `python -m benchmarks --help` lists the others. From Python,
`benchmarks.experiments.sweep.run` runs an experiment and returns its table. README.md says what is where.
"""
