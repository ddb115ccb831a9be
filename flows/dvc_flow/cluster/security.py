"""TLS for what leaves the machine: whoever can speak to a Dask port can run code behind it."""

import ipaddress
from pathlib import Path
from urllib.parse import urlsplit

from distributed import Security

from dvc_flow.errors import ClusterError

FILES = ("ca.pem", "cert.pem", "key.pem")


def security_of(address: str, tls: Path | None) -> Security | None:
    """Return what secures connections to an address; None on this machine without TLS.

    Parameters
    ----------
    address : str
        Such as ``tcp://127.0.0.1:8786`` or ``tls://gpu-box:8786``.
    tls : Path, optional
        A folder with ``ca.pem``, ``cert.pem`` and ``key.pem``.

    Raises
    ------
    ClusterError
        If a file is missing, if the address is beyond this machine and there is no folder, or if
        its scheme says otherwise.
    """
    scheme = address.partition("://")[0]
    if tls is None and scheme == "tls":
        raise ClusterError(f"{address}: TLS needs a certificate; give --tls FOLDER")
    if tls is not None and scheme == "tcp":
        raise ClusterError(f"{address}: with --tls, the address begins with tls://")
    if tls is None:
        if not is_loopback(address):
            raise ClusterError(
                f"{address}: beyond this machine only with TLS, since whoever reaches the port "
                "could run code; give --tls FOLDER (docs/cluster.md says how to make one)"
            )
        return None
    folder = tls.expanduser()
    for name in FILES:
        if not (folder / name).is_file():
            raise ClusterError(f"{folder / name}: not found; a TLS folder holds {', '.join(FILES)}")
    ca, cert, key = (str(folder / name) for name in FILES)
    roles = ("client", "scheduler", "worker")
    pairs = {
        f"tls_{role}_{what}": path
        for role in roles
        for what, path in (("cert", cert), ("key", key))
    }
    return Security(tls_ca_file=ca, require_encryption=True, **pairs)


def is_loopback(address: str) -> bool:
    """Tell whether an address, with or without scheme and port, is on this machine."""
    host = urlsplit(address if "://" in address else f"tcp://{address}").hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
