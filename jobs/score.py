"""`tokloss score` on the cluster this script runs in: what `ray job submit` starts.

    ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- \\
        python jobs/score.py --config jobs/panx_de.yaml

Arguments and exit codes are those of `tokloss score`; the job ends as FAILED for any code but 0. Paths
must be visible to every node: s3:// and the like, or a file system that all of them mount.
"""

from __future__ import annotations

import os
import sys

from tokloss_ray.__main__ import main

if __name__ == "__main__":
    # Ray sets this for submitted jobs; by hand on a node of the cluster, the job joins that cluster too.
    os.environ.setdefault("RAY_ADDRESS", "auto")
    main(["score", *sys.argv[1:]])
