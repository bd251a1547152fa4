"""What a training process needs around the model: processes and devices, optimizer, evaluation, checkpoints, logs."""
