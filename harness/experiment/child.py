"""What every job needs, imported once in the process that jobs are forked from."""

import harness.evaluate
import harness.train.run  # noqa: F401
