"""What the nodes of a home know each other by: an authority of their own, a certificate for each, and a shared secret.

Made on the node where nodes are added; `llmhost node add` carries ``ca.pem``, the pair of the node and ``key`` there,
and never ``ca.key``. No certificate of another authority opens the way between gateways, and this authority signs
nothing else, so there is nothing to configure.
"""

from __future__ import annotations

import datetime
import hashlib
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

from llmhost.errors import HomeError
from llmhost.paths import Home
from llmhost.writer import replace_file

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

VALID_DAYS = 3650
SKEW = datetime.timedelta(days=1)
"""Certificates begin so much earlier: the clock of another node may be behind."""


def ca_file(home: Home) -> Path:
    """The certificate of the authority; on every node."""
    return home.node_tls / "ca.pem"


def ca_key_file(home: Home) -> Path:
    """Its key, mode 0600; only where nodes are added."""
    return home.node_tls / "ca.key"


def certificate_file(home: Home, node: str) -> Path:
    """The certificate of a node; its name is in it."""
    return home.node_tls / f"{node}.pem"


def key_file(home: Home, node: str) -> Path:
    """Its key, mode 0600."""
    return home.node_tls / f"{node}.key"


def files_of(home: Home, node: str) -> tuple[Path, ...]:
    """What a node needs of it: certificates and keys (0600) that are the same on no two nodes but for two of them."""
    return (ca_file(home), certificate_file(home, node), key_file(home, node), home.node_key)


def missing(home: Home, node: str) -> tuple[Path, ...]:
    """Those of `files_of` that are not here."""
    return tuple(file for file in files_of(home, node) if not file.exists())


def require(home: Home, node: str) -> None:
    """Raise HomeError when this node cannot prove who it is."""
    lacking = missing(home, node)
    if lacking:
        raise HomeError(
            f"node {node} has no {lacking[0].relative_to(home.root)}, so other nodes would not let it in",
            "`llmhost node add` (or `llmhost node sync`), where the nodes were added, brings it",
        )


def mark(home: Home, node: str) -> str:
    """Digest of the certificates, which changes when one of them does."""
    found = hashlib.sha256()
    for file in (ca_file(home), certificate_file(home, node)):
        found.update(file.read_bytes())
    return found.hexdigest()[:16]


def require_authority(home: Home) -> None:
    """Raise HomeError where another node made the authority: no node can be added here."""
    if ca_file(home).exists() and not ca_key_file(home).exists():
        raise HomeError(
            f"the certificates of the nodes are made elsewhere: {ca_key_file(home)} is not here",
            "run this on the node where the first node was added; if it is gone, docs/nodes.md says what to do",
        )


def adopt_authority(home: Home, text: str) -> None:
    """From now on nodes are added here: the key of the authority, in PEM, after whatever greeted us there.

    Raises HomeError for one that does not belong to the certificate here, and when it cannot be written.
    """
    from cryptography import x509  # noqa: PLC0415
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415

    pem = text[max(text.find("-----BEGIN "), 0) :].strip()
    try:
        key = serialization.load_pem_private_key(pem.encode(), None)
        fits = x509.load_pem_x509_certificate(ca_file(home).read_bytes()).public_key() == key.public_key()
    except (OSError, ValueError, TypeError):
        fits = False
    if not fits:
        raise HomeError(
            f"the key that signs for all nodes is not that of {ca_file(home)}", "`llmhost node doctor` compares files"
        )
    write_secret(ca_key_file(home), pem)


def ensure(home: Home, node: str) -> None:
    """Make what is missing for a node; what is there stays. Only where the authority's key is, or nothing yet.

    Raises HomeError where another node made the authority, and when a file cannot be written.
    """
    try:
        home.node_tls.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not ca_file(home).exists() and not (ca_key_file(home).exists() and any(home.node_tls.glob("*.pem"))):
            _make_authority(home)  # also where that was interrupted: a key that has signed nothing
        ensure_secret(home)
        if not (certificate_file(home, node).exists() and key_file(home, node).exists()):
            _make_node(home, node)
    except OSError as e:
        raise HomeError(
            f"cannot write {e.filename}: {e.strerror}", "see `df -h` and the permissions of the home"
        ) from e


def ensure_secret(home: Home) -> None:
    """Make the secret that nodes share, unless it is there; raises HomeError."""
    if not home.node_key.exists():
        write_secret(home.node_key, secrets.token_urlsafe(48))


def write_secret(path: Path, text: str) -> None:
    """A file that nobody else can read, unless it is there and the same; raises HomeError."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists() or path.read_text(encoding="ascii").strip() != text:
            replace_file(path, text + "\n")
    except OSError as e:
        raise HomeError(f"cannot write {path}: {e.strerror}", "see `df -h` and the permissions of the home") from e


def renew(home: Home, node: str) -> None:
    """A new certificate and key for a node; raises HomeError as `ensure` does."""
    key_file(home, node).unlink(missing_ok=True)
    ensure(home, node)


def forget(home: Home, node: str) -> None:
    """Remove the pair of a node; the others refuse it when llmhost.yaml has it no more."""
    for file in (certificate_file(home, node), key_file(home, node)):
        file.unlink(missing_ok=True)


def read_secret(home: Home) -> str:
    """The secret that the nodes share; raises HomeError when it cannot be read, is too short, or others can read it."""
    try:
        text = home.node_key.read_text(encoding="ascii").strip()
        mode = home.node_key.stat().st_mode
    except (OSError, UnicodeDecodeError) as e:
        raise HomeError(f"cannot read {home.node_key}: {e}", "`llmhost node add` makes and carries it") from e
    if len(text) < 32:
        raise HomeError(f"{home.node_key} holds no secret of 32 characters", "remove it, and run `llmhost node sync`")
    if mode & 0o077:
        raise HomeError(f"others can read the secret in {home.node_key}", f"run `chmod 600 {home.node_key}`")
    return text


def _make_authority(home: Home) -> None:
    from cryptography import x509  # noqa: PLC0415 (takes a while to load, and most commands need it not)
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415

    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("llmhost nodes")
    built = (
        _builder(name, name, key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(sign=True), critical=True)
    )
    _write_pair(ca_file(home), ca_key_file(home), built, key, key)


def _make_node(home: Home, node: str) -> None:
    from cryptography import x509  # noqa: PLC0415
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415
    from cryptography.x509.oid import ExtendedKeyUsageOID  # noqa: PLC0415

    require_authority(home)
    authority = x509.load_pem_x509_certificate(ca_file(home).read_bytes())
    signer = serialization.load_pem_private_key(ca_key_file(home).read_bytes(), None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    both = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    built = (
        _builder(_name(node), authority.subject, key)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(node)]), critical=False)
        .add_extension(_usage(sign=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(both), critical=False)
    )
    _write_pair(certificate_file(home, node), key_file(home, node), built, key, signer)


def _name(text: str) -> x509.Name:
    from cryptography import x509  # noqa: PLC0415

    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])


def _builder(subject: x509.Name, issuer: x509.Name, key: EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    from cryptography import x509  # noqa: PLC0415

    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(now + datetime.timedelta(days=VALID_DAYS))
    )


def _usage(*, sign: bool) -> x509.KeyUsage:
    from cryptography import x509  # noqa: PLC0415

    return x509.KeyUsage(
        digital_signature=not sign, key_cert_sign=sign, crl_sign=sign, content_commitment=False,
        key_encipherment=False, data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _write_pair(
    certificate: Path,
    key_path: Path,
    built: x509.CertificateBuilder,
    key: EllipticCurvePrivateKey,
    signer: EllipticCurvePrivateKey,
) -> None:
    from cryptography.hazmat.primitives import hashes, serialization  # noqa: PLC0415

    plain = serialization.NoEncryption()
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    replace_file(key_path, private.decode())
    signed = built.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    replace_file(certificate, signed.decode())
