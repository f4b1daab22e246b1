"""What people look at: drawings of cells, TensorBoard, progress, the run report."""
