"""What cache servers cost, seen by LMCache's own client. SERVERS is URL,PID;URL,PID;... They are measured in turn, so many
rounds; the answer is one line of JSON: for each server what each of its rounds gave.

    lookups.py SERVERS ROUNDS lookups TOKENS COUNT      cold lookups one after the other: the server's CPU time for each
    lookups.py SERVERS ROUNDS clients TOKENS SECONDS    four clients at once: how long 99 of 100 lookups take at most
    lookups.py SERVERS ROUNDS ping COUNT                pings alone, then while a lookup waits for a slow tier
"""

import json
import multiprocessing
import os
import random
import sys
import threading
import time

import zmq
from lmcache.v1.multiprocess.custom_types import IPCCacheServerKey, RegisterEngineDrivenContextPayload
from lmcache.v1.multiprocess.transport.factory import RequestClientFactory

MODEL, WORKER = "figures", 4242
LIMIT = 60
# Imports alone take a minute where others use the machine.
START_LIMIT = 300


def connect(url):
    context = zmq.Context()
    context.setsockopt(zmq.LINGER, 0)
    return RequestClientFactory.create(url, context=context)


def cpu_seconds(pid):
    with open(f"/proc/{pid}/stat") as f:
        fields = f.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def quantile(values, part):
    values = sorted(values)
    return values[min(len(values) - 1, int(part * len(values)))]


def key(tokens, request, worker=None):
    return IPCCacheServerKey(
        model_name=MODEL, world_size=1, worker_id=worker, token_ids=tokens, start=0, end=len(tokens),
        request_id=request, num_kv_readers=1,
    )


def register(client, layers=1, hidden=1024):
    payload = RegisterEngineDrivenContextPayload(
        instance_id=WORKER, model_name=MODEL, world_size=1, block_size=16, num_layers=layers,
        hidden_dim_size=hidden, dtype_str="float16", use_mla=False, num_physical_slots=256,
    )
    client.register_kv_cache_engine_driven_context(payload).result(timeout=LIMIT)


def look_up(client, tokens, request):
    """One lookup as the scheduler makes it; the chunks that were found, and its milliseconds."""
    begun = time.perf_counter()
    client.lookup(key(tokens, request), 1).result(timeout=LIMIT)
    until = begun + LIMIT
    while (found := client.query_prefetch_status(request).result(timeout=LIMIT)) is None:
        if time.perf_counter() > until:
            raise TimeoutError(request)
    return found, 1e3 * (time.perf_counter() - begun)


def prompt(length, seed, number):
    rest = random.Random(seed)
    return (number,) + tuple(rest.randrange(128_000) for _ in range(length - 1))


def lookups(url, pid, length, count):
    client = connect(url)
    register(client)
    tail = prompt(length, 1, 0)[1:]
    seed = random.randrange(1 << 30)

    def rounds(numbers):
        took = []
        for n in numbers:
            request = f"l{seed}-{n}"
            found, ms = look_up(client, (seed ^ n,) + tail, request)
            assert found == 0, found
            client.end_session(request).result(timeout=LIMIT)
            took.append(ms)
        return took

    rounds(range(count, count + 5))
    before = cpu_seconds(pid)
    took = rounds(range(count))
    spent = cpu_seconds(pid) - before
    client.close()
    return {"server_ms": 1e3 * spent / count, "p50_ms": quantile(took, 0.5), "p99_ms": quantile(took, 0.99)}


def closed_loop(url, length, seconds, seed, begin, out):
    client = connect(url)
    tail = prompt(length, seed, 0)[1:]
    begin.wait(timeout=START_LIMIT)
    took, until, n = [], time.time() + seconds, 0
    while time.time() < until:
        request = f"c{seed}-{n}"
        took.append(look_up(client, (n + 1,) + tail, request)[1])
        client.end_session(request).result(timeout=LIMIT)
        n += 1
    out.put(took)
    client.close()


def clients(url, pid, length, seconds):
    client = connect(url)
    register(client)
    # Imports take seconds; the processes get them from one that has no connection yet.
    start = multiprocessing.get_context("forkserver")
    start.set_forkserver_preload(["__main__"])
    begin, out = start.Barrier(5), start.Queue()
    seeds = [random.randrange(1 << 30) for _ in range(4)]
    processes = [start.Process(target=closed_loop, args=(url, length, seconds, s, begin, out)) for s in seeds]
    for process in processes:
        process.start()
    begin.wait(timeout=START_LIMIT)
    before = cpu_seconds(pid)
    took = [ms for _ in processes for ms in out.get(timeout=LIMIT)]
    spent = cpu_seconds(pid) - before
    for process in processes:
        process.join()
    client.close()
    return {"p99_ms": quantile(took, 0.99), "per_second": len(took) / seconds, "server_ms": 1e3 * spent / len(took)}


def pings(client, count, stop=None):
    took = []
    while len(took) < count and not (stop and stop.is_set()):
        begun = time.perf_counter()
        client.ping(None).result(timeout=LIMIT)
        took.append(1e3 * (time.perf_counter() - begun))
        time.sleep(0.002)
    return took


def ping(url, _, count):
    """The server's L2 moves 1 MB a second: a lookup of four chunks of 1 MiB waits for seconds."""
    client, other = connect(url), connect(url)
    register(client)
    stored = prompt(1024, 3, random.randrange(1 << 30))
    transfer = key(stored, "store", 0)
    granted = client.prepare_store(transfer, WORKER).result(timeout=LIMIT)
    assert len(granted.context["slots"]) == 4
    assert client.commit_store(transfer, WORKER, b"").result(timeout=LIMIT)
    client.end_session("store").result(timeout=LIMIT)
    alone = pings(client, count)
    time.sleep(7)
    client.clear(force=True).result(timeout=LIMIT)
    client.lookup(key(stored, "read"), 1).result(timeout=LIMIT)
    over = threading.Event()

    def wait():
        other.wait_prefetch_status("read", 4.0).result(timeout=LIMIT)
        over.set()

    waiting = threading.Thread(target=wait)
    begun = time.perf_counter()
    waiting.start()
    time.sleep(0.05)
    stalled = pings(client, 1 << 30, over)
    waiting.join()
    waited = time.perf_counter() - begun
    client.close()
    other.close()
    return {
        "alone_p99_ms": quantile(alone, 0.99), "stalled_p99_ms": quantile(stalled, 0.99),
        "stalled_max_ms": max(stalled), "waited_s": waited,
    }


def main():
    servers, rounds, what, *numbers = sys.argv[1:]
    measure = {"lookups": lookups, "clients": clients, "ping": ping}[what]
    servers = [server.split(",") for server in servers.split(";")]
    answers = [[] for _ in servers]
    for _ in range(int(rounds)):
        for answer, (url, pid) in zip(answers, servers):
            answer.append(measure(url, int(pid), *map(int, numbers)))
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
