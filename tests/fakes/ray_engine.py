"""The fake engine as vLLM is with Ray: an actor on every GPU of the cluster, without which it cannot answer.

Run by a Python that has Ray; ``--gpus N``, and what tests/fakes/engine.py takes. An actor that dies is its end.
"""

from __future__ import annotations

import os
import runpy
import sys
import threading
import time
from pathlib import Path

import ray


@ray.remote(num_gpus=1, num_cpus=0)
class Worker:
    def node(self) -> str:
        return str(ray.util.get_node_ip_address())


def watch(workers: list[ray.actor.ActorHandle]) -> None:
    while True:
        try:
            ray.get([worker.node.remote() for worker in workers], timeout=20)
        except ray.exceptions.RayError as e:
            print(f"RuntimeError: Executor failed: {type(e).__name__}", file=sys.stderr, flush=True)
            os._exit(1)
        time.sleep(0.5)


def main(gpus: int) -> None:
    ray.init(log_to_driver=False)  # RAY_ADDRESS and the token are in the environment
    group = ray.util.placement_group([{"GPU": 1}] * gpus, strategy="PACK")
    ray.get(group.ready())
    workers = [Worker.options(placement_group=group).remote() for _ in range(gpus)]
    print("workers on", *sorted(ray.get([worker.node.remote() for worker in workers])), flush=True)
    threading.Thread(target=watch, args=(workers,), daemon=True).start()


if __name__ == "__main__":
    at = sys.argv.index("--gpus")
    main(int(sys.argv[at + 1]))
    del sys.argv[at : at + 2]
    runpy.run_path(str(Path(__file__).parent / "engine.py"), run_name="__main__")
