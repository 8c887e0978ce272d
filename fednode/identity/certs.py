"""TLS certificates: self-signed P-256, without meaningful dates, bound to a node key by a private extension.

The binding is libp2p's: the node key signs ``"fed-tls-v1:"`` and the certificate's public key (SubjectPublicKeyInfo).
The extension is ``SEQUENCE { OCTET STRING node key, OCTET STRING signature }``. Whoever shows such a certificate in a
handshake holds its TLS key, and the node key vouched for that TLS key: no authority and no clock is needed.
"""

import datetime
import warnings
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fednode.identity.keys import KEY_BYTES, SIGNATURE_BYTES, SigningKey, parse_public, verify
from fednode.model.errors import IdentityError
from fednode.model.ids import NodeId, node_id, short_id

BINDING_OID: Final = x509.ObjectIdentifier("1.3.6.1.4.1.58270.1.1")  # private arc; changes only with the protocol
CERT_BYTES_MAX: Final = 1024  # ours have about 600; checked before anything is parsed
_CONTEXT: Final = b"fed-tls-v1:"
_NOT_BEFORE: Final = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)  # boxes boot in 1970 after a power cut
_NOT_AFTER: Final = datetime.datetime(9999, 12, 31, tzinfo=datetime.UTC)
_HEAD: Final = bytes((0x30, 4 + KEY_BYTES + SIGNATURE_BYTES, 0x04, KEY_BYTES))
_MIDDLE: Final = bytes((0x04, SIGNATURE_BYTES))
_P256_ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


def tls_name(node: NodeId) -> str:
    """Return the name in a node's certificate: ``<short id hex>.fednode.invalid``; it resolves nowhere on purpose."""
    return f"{short_id(node)}.fednode.invalid"


def tls_key_pem(seed: bytes) -> bytes:
    """Return a P-256 private key (PKCS #8 PEM) made from 48 random bytes: an unbiased scalar (FIPS 186-5)."""
    if len(seed) < 48:
        raise IdentityError("a TLS key needs 48 random bytes")
    scalar = int.from_bytes(seed, "big") % (_P256_ORDER - 1) + 1
    key = ec.derive_private_key(scalar, ec.SECP256R1())
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def make_certificate(node_key: SigningKey, key_pem: bytes) -> bytes:
    """Return a certificate (DER) for the TLS key in `key_pem`, bound to `node_key`. Raises `IdentityError`."""
    key = _p256_private(key_pem)
    public = key.public_key()
    binding = _HEAD + node_key.public + _MIDDLE + node_key.sign(_CONTEXT + _spki(public))
    name = tls_name(node_id(node_key.public))
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    digest = hashes.Hash(hashes.SHA256())
    digest.update(_spki(public))
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(public)
        .serial_number((int.from_bytes(digest.finalize()[:16], "big") >> 1) | 1)
        .not_valid_before(_NOT_BEFORE)
        .not_valid_after(_NOT_AFTER)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        # pinned as a root by peers: it must not be able to vouch for any other certificate
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.UnrecognizedExtension(BINDING_OID, binding), critical=False)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.DER)
    )


def bound_key(der: bytes) -> bytes:
    """Return the node key (32 bytes) that vouches for the certificate `der`.

    Raises `IdentityError` when the certificate is too long, malformed, not P-256, without exactly our extension, with
    another name than its key's, or when the signature does not fit.
    """
    if len(der) > CERT_BYTES_MAX:
        raise IdentityError(f"the certificate has more than {CERT_BYTES_MAX} bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # oddities of a stranger's certificate are refused below or irrelevant
            certificate = x509.load_der_x509_certificate(der)
            public = certificate.public_key()
            names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
            extension = certificate.extensions.get_extension_for_oid(BINDING_OID).value
    except (ValueError, UnsupportedAlgorithm, x509.ExtensionNotFound, x509.DuplicateExtension) as error:
        raise IdentityError("the certificate is malformed or lacks its binding to a node key") from error
    if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(public.curve, ec.SECP256R1):
        raise IdentityError("the certificate's key is not P-256")
    if constraints.ca or not isinstance(extension, x509.UnrecognizedExtension):
        raise IdentityError("the certificate claims to be an authority")
    key, signature = _split(extension.value)
    parse_public(key)
    if names.get_values_for_type(x509.DNSName) != [tls_name(node_id(key))]:
        raise IdentityError("the certificate bears another node's name")
    if not verify(key, signature, _CONTEXT + _spki(public)):
        raise IdentityError("the certificate's binding is not signed by its node key")
    return key


def to_pem(der: bytes) -> bytes:
    """Return a certificate as PEM. Raises `IdentityError` when `der` is not one."""
    try:
        return x509.load_der_x509_certificate(der).public_bytes(serialization.Encoding.PEM)
    except ValueError as error:
        raise IdentityError("the certificate is malformed") from error


def to_der(pem: bytes) -> bytes:
    """Return the first certificate of a PEM text as DER. Raises `IdentityError` when there is none."""
    try:
        return x509.load_pem_x509_certificate(pem).public_bytes(serialization.Encoding.DER)
    except ValueError as error:
        raise IdentityError("the certificate is malformed") from error


def fits_key(der: bytes, key_pem: bytes) -> bool:
    """Say whether the certificate `der` is for the TLS key in `key_pem`. Raises `IdentityError` for a bad key."""
    public = x509.load_der_x509_certificate(der).public_key()
    return isinstance(public, ec.EllipticCurvePublicKey) and _spki(public) == _spki(_p256_private(key_pem).public_key())


def _p256_private(pem: bytes) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError) as error:
        raise IdentityError("not an unencrypted PEM private key") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise IdentityError("the TLS key is not a P-256 key")
    return key


def _spki(public: ec.EllipticCurvePublicKey) -> bytes:
    return public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _split(value: bytes) -> tuple[bytes, bytes]:
    middle = len(_HEAD) + KEY_BYTES
    right_shape = (
        len(value) == middle + len(_MIDDLE) + SIGNATURE_BYTES
        and value.startswith(_HEAD)
        and value[middle : middle + len(_MIDDLE)] == _MIDDLE
    )
    if not right_shape:
        raise IdentityError("the certificate's binding is malformed")
    return value[len(_HEAD) : middle], value[middle + len(_MIDDLE) :]
