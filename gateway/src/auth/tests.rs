//! Tokens, good and hostile. **Invariant:** every token that is not proven good is refused, and none makes a panic.

use super::*;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{EncodingKey, Header};

const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";
const NOW: UnixMillis = UnixMillis(1_700_000_000_000);
const GOOD: &str = r#"{"sub":"ben","device":"phone","exp":1700000100}"#;

fn b64(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// A token with these exact header and claims, signed with HMAC-SHA256.
fn hs256(header: &str, claims: &str) -> String {
    let said = format!("{}.{}", b64(header.as_bytes()), b64(claims.as_bytes()));
    let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, SECRET);
    let tag = aws_lc_rs::hmac::sign(&key, said.as_bytes());
    format!("{said}.{}", b64(tag.as_ref()))
}

fn check(token: &str) -> Result<Identity, TokenError> {
    let verifier = TokenVerifier::new(&TokenKey::Hs256 { secret: SECRET.to_vec() }).unwrap();
    verifier.verify(token, &DeviceId::new("phone").unwrap(), None, NOW)
}

const HS: &str = r#"{"alg":"HS256","typ":"JWT"}"#;

#[test]
fn a_good_token_names_user_device_and_end() {
    let identity = check(&hs256(HS, GOOD)).unwrap();
    assert_eq!((identity.user.as_str(), identity.device.as_str()), ("ben", "phone"));
    assert_eq!(identity.valid_until, UnixMillis(1_700_000_160_000));
    let fraction = r#"{"sub":"ben","device":"phone","exp":1700000100.5,"nbf":1700000059,"more":[1]}"#;
    assert!(check(&hs256(HS, fraction)).is_ok(), "fractions, skewed nbf and other claims");
}

#[test]
fn another_hash_under_the_same_secret_is_refused() {
    let claims: serde_json::Value = serde_json::from_str(GOOD).unwrap();
    for (algorithm, good) in [(Algorithm::HS256, true), (Algorithm::HS384, false), (Algorithm::HS512, false)]
    {
        let key = EncodingKey::from_secret(SECRET);
        let token = jsonwebtoken::encode(&Header::new(algorithm), &claims, &key).unwrap();
        assert_eq!(check(&token).is_ok(), good, "{algorithm:?}");
    }
}

#[test]
fn hostile_claims_are_refused() {
    let cases = [
        (r#"{"sub":"ben","device":"phone"}"#, TokenError::Invalid),
        (r#"{"sub":"ben","exp":1700000100}"#, TokenError::Invalid),
        (r#"{"device":"phone","exp":1700000100}"#, TokenError::Invalid),
        (r#"{"sub":"","device":"phone","exp":1700000100}"#, TokenError::Invalid),
        (r#"{"sub":"b\u0000en","device":"phone","exp":1700000100}"#, TokenError::Invalid),
        (r#"{"sub":["ben"],"device":"phone","exp":1700000100}"#, TokenError::Invalid),
        (r#"{"sub":"ben","device":"ph one","exp":1700000100}"#, TokenError::Invalid),
        (r#"{"sub":"ben","device":"laptop","exp":1700000100}"#, TokenError::OtherDevice),
        (r#"{"sub":"ben","device":"phone","exp":"1700000100"}"#, TokenError::Invalid),
        (r#"{"sub":"ben","device":"phone","exp":null}"#, TokenError::Invalid),
        (r#"{"sub":"ben","device":"phone","exp":1e300}"#, TokenError::Invalid),
        (r#"{"sub":"ben","device":"phone","exp":1e999}"#, TokenError::Invalid),
        (r#"{"sub":"ben","device":"phone","exp":-1}"#, TokenError::Invalid),
        (r#"{"sub":"ben","device":"phone","exp":1699999940}"#, TokenError::Expired),
        (r#"{"sub":"ben","device":"phone","exp":1700000100,"nbf":1700000061}"#, TokenError::Invalid),
        (r#"{"sub":"ben","device":"phone","exp":1700000100,"nbf":"x"}"#, TokenError::Invalid),
        (r#"{"sub":"eve","sub":"ben","device":"phone","exp":1700000100}"#, TokenError::Invalid),
        (r#"{"sub":"ben","device":"phone","exp":1700000100,"aud":"another"}"#, TokenError::Invalid),
        ("[]", TokenError::Invalid),
        ("", TokenError::Invalid),
    ];
    for (claims, error) in cases {
        assert_eq!(check(&hs256(HS, claims)), Err(error), "{claims}");
    }
}

#[test]
fn hostile_headers_are_refused() {
    let cases = [
        r#"{"alg":"none"}"#,
        r#"{"alg":"HS384"}"#,
        r#"{"alg":"RS256"}"#,
        r#"{"alg":"EdDSA"}"#,
        r#"{"typ":"JWT"}"#,
        r#"{"alg":"HS256","jku":"https://evil.example/keys"}"#,
        r#"{"alg":"HS256","x5u":"https://evil.example/cert"}"#,
        r#"{"alg":"HS256","x5c":["AAAA"]}"#,
        r#"{"alg":"HS256","jwk":{"kty":"oct","k":"AAAA"}}"#,
        r#"{"alg":"HS256","crit":["exp"]}"#,
        "{",
    ];
    for header in cases {
        assert_eq!(check(&hs256(header, GOOD)), Err(TokenError::Invalid), "{header}");
    }
}

#[test]
fn hostile_shapes_are_refused() {
    let good = hs256(HS, GOOD);
    let (said, _) = good.rsplit_once('.').unwrap();
    let long = hs256(
        HS,
        &format!(r#"{{"sub":"ben","device":"phone","exp":1700000100,"x":"{}"}}"#, "a".repeat(8192)),
    );
    let mut flipped = good.clone().into_bytes();
    let last = flipped.len() - 2;
    flipped[last] = if flipped[last] == b'A' { b'B' } else { b'A' };
    let flipped = String::from_utf8(flipped).unwrap();
    let cases = ["", ".", "..", "a.b.c", "....", said, &format!("{said}."), &long, &flipped, "é.é.é"];
    for token in cases {
        assert_eq!(check(token), Err(TokenError::Invalid), "{} bytes", token.len());
    }
}

#[test]
fn a_public_key_is_not_a_secret() {
    // RFC 8410, section 10.1.
    let pem = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n";
    let verifier = TokenVerifier::new(&TokenKey::EdDsa { public_pem: pem.as_bytes().to_vec() }).unwrap();
    let confused = jsonwebtoken::encode(
        &Header::default(),
        &serde_json::json!({ "sub": "ben", "device": "phone", "exp": 1_700_000_100 }),
        &EncodingKey::from_secret(pem.as_bytes()),
    );
    let device = DeviceId::new("phone").unwrap();
    assert_eq!(verifier.verify(&confused.unwrap(), &device, None, NOW), Err(TokenError::Invalid));
    assert_eq!(
        TokenVerifier::new(&TokenKey::Hs256 { secret: vec![0; 31] }).unwrap_err(),
        TokenKeyError::SecretTooShort
    );
    assert_eq!(
        TokenVerifier::new(&TokenKey::EdDsa { public_pem: b"nonsense".to_vec() }).unwrap_err(),
        TokenKeyError::NotEd25519
    );
}

fn hs(secret: &[u8]) -> TokenVerifier {
    TokenVerifier::new(&TokenKey::Hs256 { secret: secret.to_vec() }).unwrap()
}

#[test]
fn a_proof_fits_one_token_one_key_and_one_audience() {
    let device = DeviceId::new("phone").unwrap();
    let audience = r#"{"sub":"ben","device":"phone","exp":1700000100,"aud":"chat"}"#;
    let (token, for_chat) = (hs256(HS, GOOD), hs256(HS, audience));
    let proof = hs(SECRET).verify(&token, &device, None, NOW).unwrap().proof;
    let chat = hs(SECRET).for_audience("chat");
    let of_chat = chat.verify(&for_chat, &device, None, NOW).unwrap().proof;
    let again = hs(SECRET).verify(&token, &device, Some(proof), NOW).unwrap();
    assert_eq!((again.user.as_str(), again.proof), ("ben", proof), "good, with and without");
    // Another's claims under the good signature; no signature; another key; what was good for another audience.
    let eve = b64(br#"{"sub":"eve","device":"phone","exp":1700000100}"#);
    let parts: Vec<&str> = token.split('.').collect();
    let forged = format!("{}.{eve}.{}", parts[0], parts[2]);
    let bare = format!("{}.{}.", parts[0], parts[1]);
    let other = hs(b"another secret of at least 32 bytes");
    let music = hs(SECRET).for_audience("music");
    let cases = [
        (&hs(SECRET), &forged, proof),
        (&hs(SECRET), &bare, proof),
        (&other, &token, proof),
        (&music, &for_chat, of_chat),
        (&hs(SECRET), &for_chat, of_chat),
        (&chat, &token, proof),
    ];
    for (number, (verifier, token, proof)) in cases.into_iter().enumerate() {
        let verified = verifier.verify(token, &device, Some(proof), NOW);
        assert_eq!(verified, Err(TokenError::Invalid), "case {number}");
    }
}

#[test]
fn what_was_proven_is_not_proven_again_and_all_else_is_looked_at() {
    let (phone, laptop) = (DeviceId::new("phone").unwrap(), DeviceId::new("laptop").unwrap());
    let verifier = hs(SECRET).issued_by("us");
    let claims = r#"{"sub":"ben","device":"phone","exp":1700000100,"iss":"us"}"#;
    let good = hs256(HS, claims);
    // Its signature is nobody's: who looked at it would refuse it.
    let unsigned = format!("{}.bm9ib2R5", good.rsplit_once('.').unwrap().0);
    let Trust::Key(key) = &verifier.trust else { unreachable!() };
    let proof = Proof::new(key, None, &unsigned);
    assert!(verifier.verify(&unsigned, &phone, Some(proof), NOW).is_ok());
    assert_eq!(verifier.verify(&unsigned, &phone, None, NOW), Err(TokenError::Invalid));
    let later = UnixMillis(1_700_000_160_000);
    assert_eq!(verifier.verify(&unsigned, &phone, Some(proof), later), Err(TokenError::Expired));
    assert_eq!(verifier.verify(&unsigned, &laptop, Some(proof), NOW), Err(TokenError::OtherDevice));
    let strict = hs(SECRET).issued_by("them");
    assert_eq!(strict.verify(&unsigned, &phone, Some(proof), NOW), Err(TokenError::Invalid));
}
