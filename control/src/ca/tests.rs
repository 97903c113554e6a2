use super::*;
use rcgen::{PKCS_ECDSA_P384_SHA384, PKCS_RSA_SHA256};

fn authority() -> Authority {
    let new = NewRoot::generate().unwrap();
    Authority::from_pem(&format!("{}{}", new.key, new.certificate)).unwrap()
}

fn request(key: &KeyPair) -> Vec<u8> {
    CertificateParams::default()
        .serialize_request(key)
        .unwrap()
        .der()
        .to_vec()
}

#[test]
fn a_request_decides_nothing_but_the_key() {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["duet-control".to_owned()]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let csr = params.serialize_request(&key).unwrap();
    let leaf = authority()
        .certify(csr.der(), "spiffe://td/ns/a/sa/b", MIN_CERT_LIFETIME)
        .unwrap();
    let (_, parsed) = x509_parser::parse_x509_certificate(&leaf.chain[0]).unwrap();
    assert!(!parsed.is_ca());
    assert_eq!(parsed.subject().iter().count(), 0);
    let san = parsed.subject_alternative_name().unwrap().unwrap();
    assert!(san.critical, "RFC 5280, 4.1.2.6: the subject is empty");
    let names = &san.value.general_names;
    assert!(
        matches!(names.as_slice(), [x509_parser::extensions::GeneralName::URI(uri)] if *uri == "spiffe://td/ns/a/sa/b"),
        "{names:?}"
    );
}

#[test]
fn the_same_key_never_gets_the_same_serial_twice() {
    let authority = authority();
    let csr = request(&KeyPair::generate().unwrap());
    let serial = || {
        let leaf = authority
            .certify(&csr, "spiffe://td/ns/a/sa/b", MIN_CERT_LIFETIME)
            .unwrap();
        let (_, parsed) = x509_parser::parse_x509_certificate(&leaf.chain[0]).unwrap();
        parsed.raw_serial().to_vec()
    };
    assert_ne!(serial(), serial());
}

#[test]
fn other_keys_and_other_bytes_are_refused() {
    let authority = authority();
    let refused = |csr: &[u8]| {
        authority
            .certify(csr, "spiffe://td/ns/a/sa/b", MIN_CERT_LIFETIME)
            .err()
            .unwrap()
            .to_string()
    };
    let p384 = request(&KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap());
    assert!(refused(&p384).contains("ECDSA P-256"));
    assert!(refused(b"nonsense").contains("PKCS#10"));
    assert!(refused(&vec![0; MAX_CSR_BYTES + 1]).contains("16 KiB"));
    let mut forged = request(&KeyPair::generate().unwrap());
    *forged.last_mut().unwrap() ^= 1;
    assert!(refused(&forged).contains("signed"));
}

#[test]
fn no_leaf_outlives_the_root() {
    let authority = authority();
    let leaf = authority
        .certify(
            &request(&KeyPair::generate().unwrap()),
            "spiffe://td/ns/a/sa/b",
            ROOT_LIFETIME * 2,
        )
        .unwrap();
    assert_eq!(leaf.not_after, authority.issuer.not_after);
}

#[test]
fn the_root_survives_its_own_pem() {
    let authority = authority();
    let again = CertificateDer::from_pem_slice(authority.root_pem().as_bytes()).unwrap();
    assert_eq!(again, authority.issuer.root);
}

/// A CA as an operator would make it.
struct Made {
    issuer: rcgen::Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
}

impl Made {
    fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    fn pem(&self) -> String {
        pem(&self.certificate)
    }

    fn key_der(&self) -> Vec<u8> {
        self.issuer.key().serialize_der()
    }
}

fn ca_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params
        .distinguished_name
        .push(DnType::OrganizationName, "An Operator");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn made(params: CertificateParams, key: KeyPair, by: Option<&Made>) -> Made {
    let certificate = match by {
        Some(by) => params.signed_by(&key, &by.issuer).unwrap(),
        None => params.self_signed(&key).unwrap(),
    };
    Made {
        certificate: certificate.into(),
        issuer: rcgen::Issuer::new(params, key),
    }
}

fn root_ca(name: &str) -> Made {
    made(ca_params(name), KeyPair::generate().unwrap(), None)
}

fn armoured(kind: &str, der: &[u8]) -> String {
    format!(
        "-----BEGIN {kind}-----\n{}\n-----END {kind}-----\n",
        STANDARD.encode(der)
    )
}

fn leaf_of(issuer: &Issuer) -> Leaf {
    let csr = request(&KeyPair::generate().unwrap());
    let leaf = issuer.certify(&csr, "spiffe://td/ns/a/sa/b", MIN_CERT_LIFETIME);
    leaf.unwrap()
}

#[test]
fn rsa_and_ecdsa_keys_in_every_wrapping() {
    let rsa = made(
        ca_params("rsa"),
        KeyPair::generate_for(&PKCS_RSA_SHA256).unwrap(),
        None,
    );
    let p384 = made(
        ca_params("p384"),
        KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap(),
        None,
    );
    let p256 = root_ca("p256");

    // PKCS#8 ends with the PKCS#1 key, in an octet string: RFC 5208, 5; RFC 8017, A.1.2.
    let pkcs8 = rsa.key_der();
    let begin = (20..40)
        .find(|at| pkcs8[*at..].starts_with(&[0x30, 0x82]) && pkcs8[*at + 4] == 0x02)
        .unwrap();
    let pkcs1 = armoured("RSA PRIVATE KEY", &pkcs8[begin..]);

    // SEC 1, C.4, with the curve, after the block that openssl writes first.
    let pkcs8 = p256.key_der();
    let secret = pkcs8.windows(5).position(|at| at == [2, 1, 1, 4, 32]);
    let secret = &pkcs8[secret.unwrap() + 5..][..32];
    let curve = [6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7];
    let mut sec1 = vec![0x30, 0x77, 2, 1, 1, 4, 32];
    sec1.extend_from_slice(secret);
    sec1.extend_from_slice(&[0xa0, 10]);
    sec1.extend_from_slice(&curve);
    sec1.extend_from_slice(&[0xa1, 0x44, 3, 0x42, 0]);
    sec1.extend_from_slice(p256.issuer.key().public_key_raw());
    let sec1 = format!(
        "{}{}",
        armoured("EC PARAMETERS", &curve),
        armoured("EC PRIVATE KEY", &sec1)
    );

    for (ca, key) in [
        (&rsa, rsa.key_pem()),
        (&rsa, pkcs1),
        (&p384, p384.key_pem()),
        (&p256, p256.key_pem()),
        (&p256, sec1),
    ] {
        let issuer = Issuer::from_pem(&ca.pem(), &key, "").unwrap();
        assert_eq!(*issuer.root(), ca.certificate);
        assert_eq!(leaf_of(&issuer).chain.len(), 1);
    }
}

#[test]
fn intermediates_go_with_the_leaf_and_the_root_does_not() {
    let root = root_ca("root");
    let middle = made(
        ca_params("middle"),
        KeyPair::generate().unwrap(),
        Some(&root),
    );
    let low = made(
        ca_params("low"),
        KeyPair::generate().unwrap(),
        Some(&middle),
    );
    let other = root_ca("another mesh");

    // As cert-manager writes it: the root is in ca.crt, here with one more.
    let below_root = format!("{}{}", low.pem(), middle.pem());
    let bundle = format!("{}{}", other.pem(), root.pem());
    let issuer = Issuer::from_pem(&below_root, &low.key_pem(), &bundle).unwrap();
    assert_eq!(*issuer.root(), root.certificate);
    assert_eq!(issuer.others(), std::slice::from_ref(&other.certificate));
    let chain = leaf_of(&issuer).chain;
    assert_eq!(
        chain[1..],
        [low.certificate.clone(), middle.certificate.clone()]
    );

    // The root at the end of the chain.
    let whole = format!("{below_root}{}", root.pem());
    let issuer = Issuer::from_pem(&whole, &low.key_pem(), "").unwrap();
    assert_eq!(*issuer.root(), root.certificate);
    assert_eq!(leaf_of(&issuer).chain.len(), 3);

    // Without one, what is there is what peers have to trust.
    let issuer = Issuer::from_pem(&low.pem(), &low.key_pem(), "").unwrap();
    assert_eq!(*issuer.root(), low.certificate);
    assert_eq!(leaf_of(&issuer).chain.len(), 1);
}

#[test]
fn no_leaf_outlives_an_intermediate() {
    let root = root_ca("root");
    let mut params = ca_params("short");
    let now = OffsetDateTime::now_utc();
    params.not_before = now - time::Duration::hours(1);
    params.not_after = (now + time::Duration::hours(1))
        .replace_nanosecond(0)
        .unwrap();
    let end = params.not_after;
    let short = made(params, KeyPair::generate().unwrap(), Some(&root));
    let issuer = Issuer::from_pem(&short.pem(), &short.key_pem(), &root.pem()).unwrap();
    let csr = request(&KeyPair::generate().unwrap());
    let leaf = issuer
        .certify(&csr, "spiffe://td/ns/a/sa/b", DEFAULT_CERT_LIFETIME)
        .unwrap();
    assert_eq!(leaf.not_after, end);
}

#[test]
fn a_ca_that_nobody_would_believe_is_refused_by_name() {
    let root = root_ca("root");
    let refused = |chain: &str, key: &str, ca: &str| {
        let error = Issuer::from_pem(chain, key, ca).err().unwrap();
        error.to_string()
    };
    let key = root.key_pem();
    assert_eq!(refused(&root.pem(), "", ""), "holds no private key");
    assert_eq!(refused("", &key, ""), "holds no root certificate");
    let other = root_ca("other");
    let error = refused(&other.pem(), &key, "");
    assert!(error.contains("not the certificate's"), "{error}");
    let cut = &root.pem()[..200];
    assert!(refused(cut, &key, "").starts_with("holds"));

    let leaf = made(
        CertificateParams::default(),
        KeyPair::generate().unwrap(),
        None,
    );
    let error = refused(&leaf.pem(), &leaf.key_pem(), "");
    assert!(error.contains("no CA's"), "{error}");

    let mut params = ca_params("may not sign");
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    let ca = made(params, KeyPair::generate().unwrap(), None);
    let error = refused(&ca.pem(), &ca.key_pem(), "");
    assert!(error.contains("may not sign"), "{error}");

    let now = OffsetDateTime::now_utc();
    let mut params = ca_params("ended");
    params.not_before = now - time::Duration::days(2);
    params.not_after = now - time::Duration::days(1);
    let ca = made(params, KeyPair::generate().unwrap(), None);
    let error = refused(&ca.pem(), &ca.key_pem(), "");
    assert!(error.contains("ended on"), "{error}");

    let mut params = ca_params("not yet");
    params.not_before = now + time::Duration::days(1);
    params.not_after = now + time::Duration::days(2);
    let ca = made(params, KeyPair::generate().unwrap(), None);
    let error = refused(&ca.pem(), &ca.key_pem(), "");
    assert!(error.contains("not valid before"), "{error}");

    // A root that allows no intermediates below it.
    let mut params = ca_params("strict");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let strict = made(params, KeyPair::generate().unwrap(), None);
    let below = made(
        ca_params("below"),
        KeyPair::generate().unwrap(),
        Some(&strict),
    );
    let error = refused(&below.pem(), &below.key_pem(), &strict.pem());
    assert!(error.contains("path length"), "{error}");

    // An intermediate that does.
    let mut params = ca_params("middle");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let middle = made(params, KeyPair::generate().unwrap(), Some(&root));
    let below = made(
        ca_params("below"),
        KeyPair::generate().unwrap(),
        Some(&middle),
    );
    let chain = format!("{}{}", below.pem(), middle.pem());
    let error = refused(&chain, &below.key_pem(), &root.pem());
    assert!(error.contains("would not believe"), "{error}");
}
