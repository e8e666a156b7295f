"""Keeps DistributedDataParallel in step with what is frozen."""

from torch.nn.parallel import DistributedDataParallel

__all__ = ['rewrap_ddp']

_MIB = 1024 * 1024


def rewrap_ddp(model: DistributedDataParallel) -> DistributedDataParallel:
    """Wraps the module anew, so that only the parameters that still train are communicated.

    DDP fixes the parameters that it expects gradients for when it is made. Its settings and communication hooks carry
    over. Parameters are not broadcast: the ranks agree on them already.

    Args:
        model (DistributedDataParallel): The wrapper to replace. Don't use it afterwards.

    Returns:
        DistributedDataParallel: A wrapper of the same module.
    """
    # The old reducer's hooks sit on the parameters and would communicate every gradient a second time.
    model._remove_autograd_hooks()
    wrapped = DistributedDataParallel(
        model.module,
        device_ids=model.device_ids,
        output_device=model.output_device,
        dim=model.dim,
        broadcast_buffers=model.broadcast_buffers,
        init_sync=False,
        process_group=model.process_group,
        bucket_cap_mb=model.bucket_bytes_cap / _MIB,
        find_unused_parameters=model.find_unused_parameters,
        gradient_as_bucket_view=model.gradient_as_bucket_view,
        static_graph=model.static_graph,
    )
    for hook, state in model._comm_hooks:
        wrapped.register_comm_hook(state, hook)
    # What still refers to the old wrapper must not keep its gradient buckets alive.
    del model.reducer, model.logger
    return wrapped.train(model.training)
