"""LMCache's own vLLM adapters against a server: the scheduler's and the worker's, without vLLM.

    adapters.py ENDPOINT MODE all          every step of a request's life, once
    adapters.py ENDPOINT MODE live         stores, looks up and reads until its input ends, whatever becomes of the server

Prints one JSON document at the end. What it stores says itself what it has to be when it comes back.
"""

import json
import sys
import threading
import time

import torch
import zmq

from lmcache.integration.vllm.vllm_multi_process_adapter import (
    LMCacheMPSchedulerAdapter,
    LMCacheMPWorkerAdapter,
    LoadStoreOp,
    ParallelStrategy,
)
from lmcache.v1.multiprocess.group_view import EngineGroupInfo

LAYERS, BLOCKS, BLOCK, HEADS, HEAD = 2, 256, 16, 4, 32
ENDPOINT, MODE, WHAT = sys.argv[1:4]
CONFIG = {
    "lmcache.mp.mp_transfer_mode": MODE,
    "lmcache.mp.heartbeat_interval": 0.3,
    "lmcache.mp.mq_timeout": 2.0,
}
STRATEGY = ParallelStrategy(
    mla_only=False, vllm_world_size=1, vllm_worker_id=0, tp_size=1, pp_size=1, n_servers=1
)


class Engine:
    """What vLLM would be: a paged KV cache, a scheduler's adapter and a worker's."""

    def __init__(self, kv_events=False):
        self.context = zmq.Context()
        self.caches = {
            f"layer.{i}": torch.zeros(2, BLOCKS, BLOCK, HEADS, HEAD, dtype=torch.float16)
            for i in range(LAYERS)
        }
        self.scheduler = LMCacheMPSchedulerAdapter(
            [ENDPOINT], self.context, f"compat-{MODE}", BLOCK, STRATEGY, extra_config=CONFIG
        )
        self.worker = LMCacheMPWorkerAdapter(
            ENDPOINT, self.context, f"compat-{MODE}", BLOCK, STRATEGY, extra_config=CONFIG,
            enable_kv_events=kv_events,
        )
        groups = [EngineGroupInfo(engine_group_id=0, layer_indices=tuple(range(LAYERS)), tokens_per_block=BLOCK)]
        self.worker.register_kv_caches(self.caches, groups, {"kv_layout": "NHD"})
        self.chunk = self.worker.num_blocks_per_chunk() * BLOCK
        self.requests = 0

    def request(self):
        self.requests += 1
        return f"r{self.requests}"

    def lookup(self, request, tokens, seconds=10):
        self.scheduler.maybe_submit_lookup_request(request, tokens)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            found = self.scheduler.check_lookup_result(request)
            if found is not None:
                return found
            time.sleep(0.002)
        return 0

    def blocks(self, tokens):
        return list(range(1, 1 + len(tokens) // BLOCK))

    def finish(self, request, engine_ended, which, seconds=10):
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            # The engine's own end makes a request finished that has no store under way.
            ended = self.worker.get_finished({request} if engine_ended else set())
            if request in (ended[which] or ()):
                return True
            time.sleep(0.002)
        return False

    def op(self, tokens, start, end, skip=0):
        blocks = self.blocks(tokens)[start // BLOCK : end // BLOCK]
        return LoadStoreOp(tokens, [blocks], start, end, skip), self.worker.create_recorded_event()

    def store(self, request, tokens, start, end):
        self.worker.submit_store_request(request, *self.op(tokens, start, end))
        return self.finish(request, True, 0)

    def retrieve(self, request, tokens, start, end, skip=0):
        self.worker.submit_retrieve_request(request, *self.op(tokens, start, end, skip))
        return self.finish(request, False, 1) and not self.worker.get_failed_request_ids()

    def end(self, request):
        self.scheduler.cleanup_lookup_result(request)
        self.scheduler.end_session(request)

    def fill(self, tokens, start, end):
        """Each token's keys and values follow from the tokens before it."""
        for layer, cache in enumerate(self.caches.values()):
            for block in range(start // BLOCK, end // BLOCK):
                cache[:, self.blocks(tokens)[block]] = expected(tokens, layer, block)

    def wrong(self, tokens, start, end):
        bad = 0
        for layer, cache in enumerate(self.caches.values()):
            for block in range(start // BLOCK, end // BLOCK):
                same = torch.equal(cache[:, self.blocks(tokens)[block]], expected(tokens, layer, block))
                bad += not same
        return bad

    def clear(self):
        for cache in self.caches.values():
            cache.zero_()

    def close(self):
        self.worker.shutdown()
        self.scheduler.shutdown()
        self.context.term()


def prompt(number, length):
    return [number] + [7 + i % 1000 for i in range(1, length)]


def expected(tokens, layer, block):
    seed = (tokens[0] * 31 + layer * 7 + block) % 2039
    base = torch.arange(2 * BLOCK * HEADS * HEAD, dtype=torch.int32)
    return ((base * 17 + seed) % 2039).to(torch.float16).reshape(2, BLOCK, HEADS, HEAD)


def all_steps():
    e = Engine(kv_events=True)
    chunk = e.chunk
    tokens = prompt(1, 4 * chunk)
    done = {}

    # The events are followed from here on.
    e.worker.get_kv_events()
    time.sleep(0.3)
    first = e.request()
    done["a lookup of what is not there finds nothing"] = e.lookup(first, tokens) == 0
    e.fill(tokens, 0, 4 * chunk)
    done["store"] = e.store(first, tokens, 0, 4 * chunk)
    e.end(first)

    second = e.request()
    done["a lookup finds all of it"] = e.lookup(second, tokens) == 4 * chunk
    e.clear()
    done["retrieve"] = e.retrieve(second, tokens, 0, 4 * chunk) and e.wrong(tokens, 0, 4 * chunk) == 0
    e.end(second)

    third = e.request()
    longer = tokens + [5] * (2 * chunk)
    done["a longer prompt hits in part"] = e.lookup(third, longer) == 4 * chunk
    e.scheduler.free_lookup_locks(longer, 0, 2 * chunk, third)
    e.clear()
    half = e.retrieve(third, longer, 2 * chunk, 4 * chunk)
    done["the other half is read when locks of one were freed"] = half and e.wrong(tokens, 2 * chunk, 4 * chunk) == 0
    e.end(third)

    fourth = e.request()
    e.lookup(fourth, tokens)
    e.clear()
    skipped = e.retrieve(fourth, tokens, 0, 4 * chunk, skip=2 * BLOCK)
    untouched = all(bool((c[:, 1:3] == 0).all()) for c in e.caches.values())
    done["blocks that are skipped are left alone"] = (
        skipped and e.wrong(tokens, 2 * BLOCK, 4 * chunk) == 0 and (untouched or MODE == "engine_driven")
    )
    e.end(fourth)

    events, until = [], time.monotonic() + 5
    while time.monotonic() < until and not events:
        events += e.worker.get_kv_events()
        time.sleep(0.01)
    done["the worker hears of what was stored"] = bool(events)

    done["reset"] = e.scheduler.reset_cache()
    fifth = e.request()
    # A reset is of memory; what the tier below has comes back from there.
    e.lookup(fifth, tokens)
    e.clear()
    found = e.lookup(fifth, tokens)
    done["nothing wrong after a reset"] = not found or (
        e.retrieve(fifth, tokens, 0, found) and e.wrong(tokens, 0, found) == 0
    )
    e.end(fifth)
    e.close()
    done["unregister"] = True
    return done


def live():
    stop = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
    e = Engine()
    chunk = e.chunk
    counts = {"rounds": 0, "hits": 0, "stores": 0, "wrong_blocks": 0, "failed": 0, "exceptions": 0}
    number, newest = -1, 64
    print("live", flush=True)
    while not stop.is_set():
        counts["rounds"] += 1
        # Old prompts come back in turn, and each time some new ones. Between a kill and the scheduler's next ping, which tells it
        # that all is well, it finds nothing and what is computed anew is stored anew: no prompt comes back as soon as that.
        number += 1
        if number == newest:
            number, newest = 0, newest + 8
        tokens = prompt(1000 + number, 3 * chunk)
        request = e.request()
        try:
            found = e.lookup(request, tokens, 5)
            if found:
                e.clear()
                if e.retrieve(request, tokens, 0, found):
                    counts["hits"] += 1
                    counts["wrong_blocks"] += e.wrong(tokens, 0, found)
                else:
                    counts["failed"] += 1
            if found < 3 * chunk:
                e.fill(tokens, found, 3 * chunk)
                counts["stores"] += bool(e.store(request, tokens, found, 3 * chunk))
            e.end(request)
        except Exception as x:
            counts["exceptions"] += 1
            counts["last"] = repr(x)[:200]
        time.sleep(0.01)
    return counts


result = all_steps() if WHAT == "all" else live()
print(json.dumps(result), flush=True)
