import datetime
import hashlib
import json
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fednode.identity import certs
from fednode.identity.keys import SigningKey
from fednode.model.errors import IdentityError
from fednode.model.ids import node_id, short_id

VECTORS = json.loads((Path(__file__).parents[3] / "vectors/identity/certificates.json").read_text())


def key_of(name: str) -> SigningKey:
    return SigningKey.from_seed(hashlib.sha256(name.encode()).digest())


def tls_key_of(name: str) -> bytes:
    return certs.tls_key_pem(hashlib.sha512(name.encode()).digest())


@pytest.mark.parametrize("vector", VECTORS, ids=[vector["name"] for vector in VECTORS])
def test_a_binding_is_accepted_or_refused_as_in_the_vectors(vector: dict[str, str]) -> None:
    der = bytes.fromhex(vector["hex"])
    if vector["verdict"] == "ok":
        assert certs.bound_key(der).hex() == vector["node"]
    else:
        with pytest.raises(IdentityError, match=vector["verdict"]):
            certs.bound_key(der)


def test_a_certificate_has_no_meaningful_dates_and_cannot_vouch_for_others() -> None:
    key = key_of("node")
    certificate = x509.load_der_x509_certificate(certs.make_certificate(key, tls_key_of("tls")))
    assert certificate.not_valid_before_utc == datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    assert certificate.not_valid_after_utc == datetime.datetime(9999, 12, 31, tzinfo=datetime.UTC)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [f"{short_id(node_id(key.public))}.fednode.invalid"]
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_a_certificate_fits_its_own_tls_key_only() -> None:
    der = certs.make_certificate(key_of("node"), tls_key_of("tls"))
    assert certs.fits_key(der, tls_key_of("tls"))
    assert not certs.fits_key(der, tls_key_of("other"))
    assert certs.to_der(certs.to_pem(der)) == der


def crafted(key: ec.EllipticCurvePrivateKey, binding: bytes, *, authority: bool = False) -> bytes:
    """A certificate that bears our node's name, made by somebody with another idea of the rest."""
    name = certs.tls_name(node_id(key_of("node").public))
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(datetime.datetime(1970, 1, 1))
        .not_valid_after(datetime.datetime(9999, 12, 31))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(x509.UnrecognizedExtension(certs.BINDING_OID, binding), critical=False)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.DER)
    )


def genuine_binding() -> bytes:
    certificate = x509.load_der_x509_certificate(certs.make_certificate(key_of("node"), tls_key_of("tls")))
    extension = certificate.extensions.get_extension_for_oid(certs.BINDING_OID).value
    assert isinstance(extension, x509.UnrecognizedExtension)
    return extension.value


@pytest.mark.parametrize(
    "curve, binding, authority, refusal",
    [
        (ec.SECP256R1(), genuine_binding(), False, "not signed by its node key"),  # moved to another TLS key
        (ec.SECP384R1(), genuine_binding(), False, "not P-256"),
        (ec.SECP256R1(), genuine_binding(), True, "authority"),
        (ec.SECP256R1(), genuine_binding()[:-1], False, "binding is malformed"),
        (ec.SECP256R1(), b"", False, "binding is malformed"),
    ],
)
def test_a_crafted_certificate_is_refused(
    curve: ec.EllipticCurve, binding: bytes, authority: bool, refusal: str
) -> None:
    with pytest.raises(IdentityError, match=refusal):
        certs.bound_key(crafted(ec.generate_private_key(curve), binding, authority=authority))


def test_bad_keys_are_named() -> None:
    with pytest.raises(IdentityError, match="48 random bytes"):
        certs.tls_key_pem(b"short")
    with pytest.raises(IdentityError, match="not a P-256"):
        certs.make_certificate(key_of("node"), key_of("node").to_pem())
    with pytest.raises(IdentityError, match="not an unencrypted PEM"):
        certs.make_certificate(key_of("node"), b"no pem")
    with pytest.raises(IdentityError, match="malformed"):
        certs.to_der(b"no pem")
    with pytest.raises(IdentityError, match="malformed"):
        certs.to_pem(b"no der")
