"""LMCache's storage manager on the work that `kvstrata-compare lmcache` gives it.

Reads one JSON request a line, answers with one JSON object a line: seconds, as LMCache's own process sees them. It uses
what LMCache's cache server uses: `StorageManager` over DRAM, and below it the native adapter for files.
"""

import json
import os
import shutil
import sys
import time

import torch
from lmcache.v1.distributed.api import GroupedObjectKeys, MemoryLayoutDesc, ObjectKey, PrefetchTaskSpec
from lmcache.v1.distributed.config import (
    EvictionConfig,
    L1ManagerConfig,
    L1MemoryManagerConfig,
    StorageManagerConfig,
)
from lmcache.v1.distributed.l2_adapters.config import L2AdaptersConfig
from lmcache.v1.distributed.l2_adapters.fs_native_l2_adapter import FSNativeL2AdapterConfig
from lmcache.v1.distributed.storage_manager import StorageManager

PATIENCE = 60.0


def keys(first, n):
    """Keys as the server makes them: 32 bytes of hash each."""
    return [ObjectKey(i.to_bytes(32, "little"), "model", 0) for i in range(first, first + n)]


def layout(size):
    return MemoryLayoutDesc([torch.Size([size])], [torch.uint8])


def manager(gib, adapters):
    memory = L1MemoryManagerConfig(size_in_bytes=int(gib * (1 << 30)), use_lazy=False, shm_name="")
    return StorageManager(
        StorageManagerConfig(
            l1_manager_config=L1ManagerConfig(memory_config=memory),
            eviction_config=EvictionConfig(eviction_policy="LRU"),
            l2_adapter_config=L2AdaptersConfig(adapters),
        )
    )


def write(m, ks, shape, sources):
    """Reserves, fills where there is something to fill with, and finishes."""
    reserved = m.reserve_write(ks, shape)
    assert len(reserved) == len(ks), f"{len(reserved)} of {len(ks)} keys got a buffer"
    if sources:
        for key, source in zip(ks, sources):
            reserved[key].tensor.view(torch.uint8).copy_(source)
    m.finish_write(ks)


def fetch(m, ks, shape):
    """Looks up, loads what is below, and locks; the keys that are there now."""
    spec = PrefetchTaskSpec([GroupedObjectKeys(ks, 0, shape)])
    handle = m.submit_prefetch_task(spec, "bench")
    assert m.wait_prefetch_status(handle, PATIENCE), "no answer in a minute"
    result = m.query_prefetch_status(handle)
    return result.l1_hit_count + result.l2_hit_count


def timed(work):
    begun = time.perf_counter()
    found = work()
    return time.perf_counter() - begun, found


def memory(rounds, batch):
    """Seconds per key of writing and of reading a batch, of 4 KiB each; nothing is copied."""
    m, shape = manager(1, []), layout(4096)
    write_s, read_s = [], []
    for round_ in range(rounds):
        ks = keys(round_ * batch, batch)
        took, _ = timed(lambda: write(m, ks, shape, None))
        write_s.append(took / batch)

        def read():
            found = fetch(m, ks, shape)
            with m.read_prefetched_results(ks) as objects:
                assert objects is not None and len(objects) == batch
            m.finish_read_prefetched(ks)
            return found

        took, found = timed(read)
        assert found == batch, f"{found} of {batch} keys are in L1"
        read_s.append(took / batch)
        m.delete_l1_keys(ks, True)
    m.close()
    return {"write": write_s, "read": read_s}


def files(base_path, n, size, workers):
    """Seconds of storing and of loading all of it again, through files."""
    os.makedirs(base_path)
    m = manager(1.25 * n * size / (1 << 30) + 0.25, [FSNativeL2AdapterConfig(base_path, num_workers=workers)])
    ks, shape = keys(0, n), layout(size)
    sources = [torch.randint(0, 256, (size,), dtype=torch.uint8) for _ in range(n)]

    def store():
        write(m, ks, shape, sources)
        limit = time.perf_counter() + PATIENCE
        while sum(e.name.endswith(".data") for e in os.scandir(base_path)) < n:
            assert time.perf_counter() < limit, "the files did not come"
            time.sleep(0.001)

    stored, _ = timed(store)
    # The adapter holds what it stores until it has said so.
    limit = time.perf_counter() + PATIENCE
    while m.get_l1_usage()[0] > 0:
        m.delete_l1_keys(ks, False)
        assert time.perf_counter() < limit, "L1 does not become empty"
        time.sleep(0.001)
    loaded, found = timed(lambda: fetch(m, ks, shape))
    wrong = 0
    with m.read_prefetched_results(ks[:found]) as objects:
        wrong = sum(not torch.equal(o.tensor.view(torch.uint8), s) for o, s in zip(objects or [], sources))
    m.finish_read_prefetched(ks[:found])
    m.close()
    shutil.rmtree(base_path)
    return {"store": stored, "load": loaded, "found": found, "wrong": wrong}


def main():
    torch.set_num_threads(1)
    # Whatever the library prints goes elsewhere: the answers have their own descriptor.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    commands = {"memory": memory, "files": files}
    for line in sys.stdin:
        request = json.loads(line)
        answer = commands[request.pop("do")](**request)
        print(json.dumps(answer), file=answers, flush=True)


main()
