"""The keys that detectron2's loops for lazy configurations read."""


def training(iterations, period, output_dir, find_unused_parameters=False):
    """Train for some iterations; evaluate and save every ``period`` of them."""
    return {
        "output_dir": output_dir,
        "init_checkpoint": "",
        "max_iter": iterations,
        "amp": {"enabled": False},
        "ddp": {
            "broadcast_buffers": False,
            "find_unused_parameters": find_unused_parameters,
            "fp16_compression": False,
        },
        "checkpointer": {"period": period, "max_to_keep": 3},
        "eval_period": period,
        "log_period": 20,
        "device": "cuda",
        "seed": 0,
    }
