"""NLTK's English sentence splitter: the trained one where it is installed, an untrained stand-in elsewhere.

Only rougeLsum depends on where sentences end, and the count of characters by a few. The trained parameters
(``punkt_tab``) are a download that no package brings along.
"""

from __future__ import annotations

import io
import socket
from collections.abc import Callable
from pathlib import Path

import nltk
from nltk.downloader import Downloader
from nltk.tokenize.punkt import PunktSentenceTokenizer, PunktTokenizer

from mlperf_exp.errors import UserError

_TIMEOUT_S = 30.0


def sentence_splitter() -> tuple[Callable[[str], list[str]], str | None]:
    """The best splitter at hand, and a sentence on what it makes not comparable (None: it is the reference's).

    A model that is damaged or that NLTK refuses is treated as missing: scoring comes last, after hours of work.
    """
    try:
        return PunktTokenizer("english").tokenize, None
    except LookupError:
        found = "is not installed"
    except (OSError, ValueError) as error:
        found = f"cannot be read ({_one_line(error)})"
    return PunktSentenceTokenizer().tokenize, (
        f"rougeLsum is not comparable with the reference's, and gen_len may differ by a few characters: NLTK's English "
        f"sentence model {found} and an untrained splitter stood in for it (get it with: "
        f"python -m mlperf_exp.data.prepare punkt)"
    )


def download() -> Path:
    """Install ``punkt_tab`` in NLTK's default data folder, and check that it serves.

    Returns:
        The data folder.

    Raises:
        UserError: no network, no room, or what came is not usable.
    """
    folder = Path(Downloader().default_download_dir())
    remedy = (
        f"Check the network, or copy the folder tokenizers/punkt_tab from the nltk_data of a machine that has it to "
        f"{folder / 'tokenizers' / 'punkt_tab'}"
    )
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT_S)  # NLTK itself would wait for ever on a network that swallows packets
    try:
        nltk.download("punkt_tab", str(folder), quiet=True, raise_on_error=True, print_error_to=io.StringIO())
    except Exception as error:  # urllib, zipfile, NLTK's own: whatever it is, the download has failed
        raise UserError("punkt", f"NLTK's punkt_tab cannot be downloaded ({_one_line(error)})", remedy) from error
    finally:
        socket.setdefaulttimeout(before)
    note = sentence_splitter()[1]
    if note is not None:
        raise UserError("punkt", f"punkt_tab was downloaded to {folder} and is still of no use: {note}", remedy)
    return folder


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
