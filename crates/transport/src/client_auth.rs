//! Verifies clients' certificates (RFC 5280 §6): those of X.509 version 3 as rustls does, and those of version 1 that a root has signed
//! itself.
//!
//! `openssl x509 -req` without an extension file makes certificates of version 1 up to OpenSSL 3.3, and most instructions for
//! client certificates say just that; rustls refuses them. A certificate of version 1 has no extensions, so there is little to it: its
//! issuer is a root, the root's key signed it, and it is valid now. Nobody can use it to sign others, since an intermediate certificate must
//! still be of version 3.

use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{CertificateDer, SignatureVerificationAlgorithm, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, PeerMisbehaved, SignatureScheme};

use crate::certificate::{self, Root};

/// See the [module documentation](self).
#[derive(Debug)]
pub(crate) struct Verifier {
    version_3: Arc<dyn ClientCertVerifier>,
    roots: Vec<Root>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Verifier {
    pub(crate) fn new(
        version_3: Arc<dyn ClientCertVerifier>,
        roots: &[CertificateDer<'_>],
        algorithms: WebPkiSupportedAlgorithms,
    ) -> Verifier {
        let roots = roots.iter().filter_map(|root| certificate::root(root)).collect();
        Verifier { version_3, roots, algorithms }
    }

    /// A certificate of version 1: whether a root has signed it, and it is valid.
    fn verify_version_1(&self, certificate: &[u8], now: UnixTime) -> Result<(), CertificateError> {
        let signed = certificate::signed(certificate).ok_or(CertificateError::BadEncoding)?;
        let (not_before, not_after) = certificate::validity(certificate).ok_or(CertificateError::BadEncoding)?;
        let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        let mut known = false;
        let by_a_root = self.roots.iter().filter(|root| root.subject == signed.issuer).any(|root| {
            known = true;
            let fitting = |algorithm: &&&'static dyn SignatureVerificationAlgorithm| {
                algorithm.signature_alg_id().as_ref() == signed.algorithm
            };
            self.algorithms
                .all
                .iter()
                .filter(fitting)
                .any(|algorithm| verifies(*algorithm, &root.public_key, signed.bytes, signed.signature))
        });
        if !by_a_root {
            return Err(if known { CertificateError::BadSignature } else { CertificateError::UnknownIssuer });
        }
        if now < not_before {
            return Err(CertificateError::NotValidYet);
        }
        if now > not_after {
            return Err(CertificateError::Expired);
        }
        Ok(())
    }

    /// Whether the key of a certificate of version 1 signed the handshake. TLS 1.3 ties a scheme to one algorithm, the first.
    fn verify_handshake(
        &self,
        message: &[u8],
        certificate: &[u8],
        signed: &DigitallySignedStruct,
        most: usize,
    ) -> Result<HandshakeSignatureValid, Error> {
        let mapped = self.algorithms.mapping.iter().find(|(scheme, _)| *scheme == signed.scheme);
        let Some((_, algorithms)) = mapped else {
            return Err(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into());
        };
        let key = certificate::public_key(certificate).ok_or(CertificateError::BadEncoding)?;
        let good = algorithms.iter().take(most).any(|algorithm| verifies(*algorithm, key, message, signed.signature()));
        if good { Ok(HandshakeSignatureValid::assertion()) } else { Err(CertificateError::BadSignature.into()) }
    }
}

/// Whether `signature` is that of the key's owner, if the algorithm is one for such keys.
fn verifies(
    algorithm: &'static dyn SignatureVerificationAlgorithm,
    public_key: &[u8],
    message: &[u8],
    signature: &[u8],
) -> bool {
    let Some((kind, key)) = certificate::key_bits(public_key) else { return false };
    algorithm.public_key_alg_id().as_ref() == kind && algorithm.verify_signature(key, message, signature).is_ok()
}

impl ClientCertVerifier for Verifier {
    fn offer_client_auth(&self) -> bool {
        self.version_3.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.version_3.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.version_3.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        if !certificate::is_version_1(end_entity) {
            return self.version_3.verify_client_cert(end_entity, intermediates, now);
        }
        self.verify_version_1(end_entity, now)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        if certificate::is_version_1(cert) {
            return self.verify_handshake(message, cert, dss, usize::MAX);
        }
        self.version_3.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        if !certificate::is_version_1(cert) {
            return self.version_3.verify_tls13_signature(message, cert, dss);
        }
        // Not with PKCS #1 v1.5 or SHA-1 (RFC 8446 §4.2.3).
        match dss.scheme {
            SignatureScheme::ECDSA_NISTP256_SHA256
            | SignatureScheme::ECDSA_NISTP384_SHA384
            | SignatureScheme::ED25519
            | SignatureScheme::RSA_PSS_SHA256
            | SignatureScheme::RSA_PSS_SHA384
            | SignatureScheme::RSA_PSS_SHA512 => self.verify_handshake(message, cert, dss, 1),
            _ => Err(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into()),
        }
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.version_3.supported_verify_schemes()
    }
}
