"""What all tests share: the examples that hypothesis draws are the same in every run.

A failure is then found again by the next run, and a commit is not blamed for an example that the one before
it was spared. `HYPOTHESIS_PROFILE=default` draws anew.
"""

import os

from hypothesis import settings

settings.register_profile("same", derandomize=True, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))
