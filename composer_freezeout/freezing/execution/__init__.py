"""What DistributedDataParallel, FSDP and torch.compile need to be told after a freeze."""
