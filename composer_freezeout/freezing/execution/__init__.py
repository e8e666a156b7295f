"""How a model runs: eager, in DistributedDataParallel, sharded by FSDP, compiled. What each needs when units freeze."""
