"""``indextts app`` and ``indextts lab``: the panels as a page of their own, and JupyterLab on the first notebook."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import secrets
import socket
import sys
from pathlib import Path
from typing import Any

LOOPBACK = ("127.0.0.1", "localhost", "::1")
NOTEBOOKS = "notebooks"


def add_app_options(app: argparse.ArgumentParser) -> None:
    """What ``app`` takes beside the engine's options."""
    app.add_argument("--port", type=int, default=8866, help="(default: %(default)s; the next free one if it is taken)")
    app.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s); a token is asked for everywhere")
    app.add_argument("--no-browser", action="store_true", help="only print the address")
    app.add_argument("--dark", action="store_true", help="dark colours")
    app.set_defaults(run=run_app)


def add_lab_options(lab: argparse.ArgumentParser) -> None:
    """What ``lab`` takes."""
    lab.add_argument("notebook", nargs="?", default="00", help="beginning of a notebook's name (default: %(default)s)")
    lab.add_argument("--notebooks", metavar="DIR", help="folder of the notebooks (default: notebooks/ here, else beside the package)")
    lab.add_argument("--port", type=int, default=8888, help="(default: %(default)s; the next free one if it is taken)")
    lab.add_argument("--no-browser", action="store_true", help="only print the address")
    lab.set_defaults(run=run_lab)


def run_app(arguments: argparse.Namespace) -> int:
    """Serve the panels until interrupted. Every visit has an engine of its own."""
    _need("voila", "app")
    _check_port(arguments.port)
    if arguments.random_weights and arguments.model_dir:
        raise ValueError("--random-weights and --model-dir exclude each other")
    if arguments.model_dir is not None and not Path(arguments.model_dir).is_dir():
        raise FileNotFoundError(f"--model-dir {arguments.model_dir!r} is no folder")
    from traitlets.config import Config
    from voila.app import Voila

    from widgets.app import FILES, NOTEBOOK, OPTIONS_VARIABLE

    options = {
        "model_dir": arguments.model_dir and str(Path(arguments.model_dir).resolve()),
        "random": arguments.size if arguments.random_weights else None,
        "device": arguments.device,
        "precision": arguments.precision,
    }
    os.environ[OPTIONS_VARIABLE] = json.dumps(options)
    os.environ["JUPYTER_PATH"] = os.pathsep.join([str(FILES), *filter(None, [os.environ.get("JUPYTER_PATH")])])
    port, token = _free_port(arguments.host, arguments.port), secrets.token_urlsafe(24)
    config = Config()
    config.Voila.ip, config.Voila.port, config.Voila.port_retries = arguments.host, port, 0
    config.Voila.token, config.Voila.open_browser = token, False
    config.VoilaConfiguration.template = "indextts"
    config.VoilaConfiguration.theme = "dark" if arguments.dark else "light"
    config.VoilaConfiguration.show_tracebacks = arguments.verbose
    config.VoilaConfiguration.file_allowlist = []
    config.VoilaConfiguration.http_keep_alive_timeout = 30  # loading a large voice takes longer than some proxies wait
    shown = "localhost" if arguments.host in ("0.0.0.0", "::") else f"[{arguments.host}]" if ":" in arguments.host else arguments.host
    address = f"http://{shown}:{port}/?token={token}"
    if arguments.host not in LOOPBACK:
        sys.stderr.write("indextts: listening beyond this machine, without encryption; whoever has the token can run code here\n")
    sys.stdout.write(f"The lab is at {address}\nEvery page that is opened loads an engine of its own. Ctrl-C ends it.\n")
    sys.stdout.flush()
    if not arguments.no_browser:
        _open_soon(address)
    Voila.launch_instance(argv=[str(NOTEBOOK)], config=config)
    return 0


def run_lab(arguments: argparse.Namespace) -> int:
    """JupyterLab until interrupted."""
    _need("jupyterlab", "lab")
    _check_port(arguments.port)
    notebook = find_notebook(arguments.notebook, arguments.notebooks)
    from jupyterlab.labapp import LabApp

    options = [f"--ServerApp.port={arguments.port}", f"--ServerApp.root_dir={notebook.parent}"]
    if arguments.no_browser:
        options.append("--no-browser")
    LabApp.launch_instance(argv=[str(notebook), *options])
    return 0


def find_notebook(start: str, folder: str | None = None) -> Path:
    """The first notebook whose name begins with ``start``. Errors: ``FileNotFoundError`` that says where they come from."""
    places = [Path(folder).expanduser()] if folder else [Path.cwd() / NOTEBOOKS, Path(__file__).resolve().parents[1] / NOTEBOOKS]
    for place in places:
        names = sorted(path for path in place.glob("*.ipynb") if path.name.startswith(start))
        if names:
            return names[0].resolve()
    present = sorted(path.stem for place in places for path in place.glob("*.ipynb"))
    if present:
        raise FileNotFoundError(f"no notebook begins with {start!r}; there are {', '.join(dict.fromkeys(present))}")
    where = " and ".join(str(place) for place in places)
    raise FileNotFoundError(f"there are no notebooks in {where}: they come with the project's source; name their folder with --notebooks")


def _need(module: str, command: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise ImportError(f"indextts {command} needs {module}, which is not installed: pip install 'indextts2-lab[lab]'")


def _check_port(port: int) -> None:
    if not 1 <= port <= 65535:
        raise ValueError(f"--port must be from 1 to 65535, got {port}")


def _free_port(host: str, first: int) -> int:
    """``first``, or the next port that is free. Errors: ``OSError`` if none of the next fifty is, or the host is not this machine."""
    problem: OSError | None = None
    for port in range(first, min(first + 50, 65536)):
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                problem = error
                continue
            return port
    raise OSError(f"cannot listen on {host}, ports {first} and above: {problem.strerror if problem else 'none left'}")


def _open_soon(address: str) -> None:
    """Open a browser once the server has had time to start."""
    import threading
    import webbrowser

    timer = threading.Timer(2.0, webbrowser.open, [address])
    timer.daemon = True
    timer.start()


def register(commands: Any, command: Any, engine_options: Any) -> None:
    """Add both sub-commands."""
    app = command(commands, "app", run_app, "the panels as a page in the browser, without a notebook")
    add_app_options(app)
    engine_options(app)
    add_lab_options(command(commands, "lab", run_lab, "JupyterLab on the notebooks"))
