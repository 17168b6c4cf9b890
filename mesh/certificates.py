"""A small certificate authority in a folder: enough for a mesh without another one. The only place of cryptography.

What always holds: the key of the authority never leaves its folder; keys are readable by their owner alone; every
certificate it issues carries one SPIFFE id of its trust domain and serves both ends of a connection; what is there is
never overwritten except a certificate by a newer one of the same folder, key first, so that whoever looks meanwhile
sees two files that do not fit rather than ones that only seem to.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from penstock.errors import ConfigurationError, Refused
from penstock.files import write_atomically
from penstock.mesh.identity import AUTHORITIES, CERTIFICATE, KEY, spiffe_id, trust_domain_of

AUTHORITY_KEY: Final = "ca.key"
SKEW: Final = timedelta(minutes=5)
"""A certificate is valid from a little before it is issued, for machines whose clocks are behind."""


class Described(NamedTuple):
    """What a certificate says, for people."""

    identity: str
    begins: datetime
    ends: datetime
    authority: bool


def make_authority(folder: Path, trust_domain: str, lifetime: timedelta, now: datetime) -> Path:
    """Begin an authority for `trust_domain` in `folder`. Refuses to replace one: nobody would be trusted any more."""
    if (folder / AUTHORITY_KEY).exists():
        raise Refused(
            "PEN0876",
            f"{folder} has an authority already. Issue certificates from it, or name another folder; if it is to go, "
            "delete it yourself.",
        )
    identity = spiffe_id(trust_domain, "penstock", "authority").partition("/ns/")[0]
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name(f"Penstock mesh {trust_domain}")
    certificate = (
        _begun(name, key.public_key(), lifetime, now, identity)
        .issuer_name(name)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(authority=True), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    folder.mkdir(parents=True, exist_ok=True)
    _write_key(folder / AUTHORITY_KEY, key)
    write_atomically(folder / AUTHORITIES, _pem(certificate))
    return folder / AUTHORITIES


def issue(authority: Path, target: Path, *, namespace: str, name: str, lifetime: timedelta, now: datetime) -> Described:
    """Write an identity of its own into `target`. Issued again into the same folder, it replaces the one before."""
    issuer, issuer_key = _authority(authority)
    trust_domain = trust_domain_of(_identity(issuer))
    ends = now + lifetime
    if ends > issuer.not_valid_after_utc:
        raise ConfigurationError(
            "PEN0876",
            f"The authority in {authority} is valid until {issuer.not_valid_after_utc:%Y-%m-%d %H:%M} UTC, less than "
            f"{lifetime}. Ask for a shorter time, or begin another authority in another folder.",
        )
    identity = spiffe_id(trust_domain, namespace, name)
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        _begun(_name(name), key.public_key(), lifetime, now, identity)
        .issuer_name(issuer.subject)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(authority=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
        .sign(issuer_key, hashes.SHA256())
    )
    target.mkdir(parents=True, exist_ok=True)
    _write_key(target / KEY, key)
    write_atomically(target / CERTIFICATE, _pem(certificate))
    write_atomically(target / AUTHORITIES, _pem(issuer))
    return _described(certificate)


def describe(path: Path) -> Described:
    """The certificate in the file `path`. Raises ConfigurationError."""
    return _described(_read_certificate(path))


def _begun(
    subject: x509.Name, key: ec.EllipticCurvePublicKey, lifetime: timedelta, now: datetime, identity: str
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now.astimezone(UTC) - SKEW)
        .not_valid_after(now.astimezone(UTC) + lifetime)
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity)]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _authority(folder: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    certificate = _read_certificate(folder / AUTHORITIES)
    try:
        key = serialization.load_pem_private_key((folder / AUTHORITY_KEY).read_bytes(), password=None)
    except (OSError, ValueError) as error:
        raise _unreadable(folder / AUTHORITY_KEY, error) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise ConfigurationError(
            "PEN0876", f"{folder / AUTHORITY_KEY} is not the key of {folder / AUTHORITIES}. Put back the one that is."
        )
    return certificate, key


def _read_certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def _described(certificate: x509.Certificate) -> Described:
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    return Described(
        _identity(certificate), certificate.not_valid_before_utc, certificate.not_valid_after_utc, constraints.ca
    )


def _identity(certificate: x509.Certificate) -> str:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ""
    return next(iter(names.get_values_for_type(x509.UniformResourceIdentifier)), "")


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common[:64])])


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    data = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    write_atomically(path, data, private=True)


def _unreadable(path: Path, error: Exception) -> ConfigurationError:
    why = error.strerror if isinstance(error, OSError) else "it is not PEM, or of another kind"
    return ConfigurationError(
        "PEN0876", f"{path} can't be read: {why}. Begin an authority with penstock mesh ca init, or name its folder."
    )
