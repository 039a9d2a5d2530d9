"""Print how many argon2id hashes per second the available cores compute, with the parameters of the default scheme."""

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from argon2 import PasswordHasher


def main() -> None:
    seconds = float(sys.argv[1])
    hasher = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)
    end = time.perf_counter() + seconds

    def hash_repeatedly(_thread: int) -> int:
        count = 0
        while time.perf_counter() < end:
            hasher.hash("correct horse battery")
            count += 1
        return count

    threads = len(os.sched_getaffinity(0))
    started_at = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        count = sum(pool.map(hash_repeatedly, range(threads)))
    print(count / (time.perf_counter() - started_at))


if __name__ == "__main__":
    main()
