"""argon2id alone, with the cost of our default scheme, on the cores this process may use. Prints hashes a second."""

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from argon2 import PasswordHasher


def main() -> None:
    seconds = float(sys.argv[1])
    hasher = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)
    end = time.perf_counter() + seconds

    def hash_until_the_end(_thread: int) -> int:
        count = 0
        while time.perf_counter() < end:
            hasher.hash("correct horse battery")
            count += 1
        return count

    threads = len(os.sched_getaffinity(0))
    begin = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        count = sum(pool.map(hash_until_the_end, range(threads)))
    print(count / (time.perf_counter() - begin))


if __name__ == "__main__":
    main()
