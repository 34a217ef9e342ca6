"""Several processes on one GPU at the same time, by CUDA's multi-process service (MPS).

Without it a GPU gives whole slices of time to one process after the other, and a small network's kernels leave most of a large GPU idle
in theirs. With it kernels of all processes run side by side. It needs no rights, changes no setting of the GPU, and ends with the run.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

logger = logging.getLogger(__name__)

_PROGRAM = "nvidia-cuda-mps-control"
_CHECK = "import torch; x = torch.ones(64, 64, device='cuda'); assert float((x @ x).sum()) == 64**3"
_PATIENCE_S = 60.0


class GpuSharing:
    """The service, from :meth:`start` to :meth:`stop`; where it cannot be had, nothing happens.

    A service that runs already and is named by ``CUDA_MPS_PIPE_DIRECTORY`` is left to whoever started it.
    """

    def __init__(self, folder: Path) -> None:
        self._variables = {"CUDA_MPS_PIPE_DIRECTORY": str(folder / "mps"), "CUDA_MPS_LOG_DIRECTORY": str(folder / "mps-log")}
        self._pipe = folder / "mps"
        self._running = False

    def start(self) -> dict[str, str]:
        """Environment variables for the processes that are to share; none if the service does not run."""
        program = shutil.which(_PROGRAM)
        if program is None or "CUDA_MPS_PIPE_DIRECTORY" in os.environ:
            return {}
        if self._pipe.is_dir():
            self._running = True
            self.stop()  # what a killed run left
        for folder in self._variables.values():
            Path(folder).mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, **self._variables}
        try:
            subprocess.run([program, "-d"], env=environment, check=True, timeout=_PATIENCE_S, stdin=subprocess.DEVNULL, capture_output=True)
            self._running = True
            subprocess.run([sys.executable, "-c", _CHECK], env=environment, check=True, timeout=_PATIENCE_S, capture_output=True)
        except (OSError, subprocess.SubprocessError) as error:
            logger.warning("the stages take turns on the GPU, for %s does not work here: %s", _PROGRAM, error)
            self.stop()
            return {}
        logger.info("the stages share the GPU (%s)", _PROGRAM)
        return self._variables

    def stop(self) -> None:
        """End the service."""
        if self._running:
            self._running = False
            try:
                environment = {**os.environ, **self._variables}
                subprocess.run([_PROGRAM], input=b"quit\n", env=environment, check=True, timeout=10, capture_output=True)
            except (OSError, subprocess.SubprocessError) as error:
                logger.warning("%s may still be running: %s", _PROGRAM, error)
            shutil.rmtree(self._pipe, ignore_errors=True)
