"""A report for eyes: TensorBoard, other loggers, scalars, figures and contact sheets."""
