//! Message encryption for Web Push, the browser's side (RFC 8291 on RFC 8188). **Invariant:** one record, its delimiter
//! last, nothing after it.

use super::subscription::Held;
use aws_lc_rs::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::agreement::{ECDH_P256, PrivateKey, UnparsedPublicKey, agree};
use aws_lc_rs::hmac::{HMAC_SHA256, Key, Tag, sign};

const SALT_BYTES: usize = 16;
const POINT_BYTES: usize = 65;
const TAG_BYTES: usize = 16;
/// Salt, record size, length of the key id, key id (RFC 8188 §2.1).
const HEAD_BYTES: usize = SALT_BYTES + 4 + 1 + POINT_BYTES;

/// Decrypts a body. The error says what is wrong.
pub(super) fn decrypt(body: &[u8], held: &Held) -> Result<Vec<u8>, String> {
    open(body, &held.private, &held.public, &held.auth)
}

fn open(body: &[u8], private: &PrivateKey, public: &[u8], auth: &[u8]) -> Result<Vec<u8>, String> {
    if body.len() < HEAD_BYTES + TAG_BYTES + 1 {
        return Err(format!("the body has {} bytes: no head and record of aes128gcm fit in", body.len()));
    }
    let (salt, rest) = body.split_at(SALT_BYTES);
    let record_bytes = u32::from_be_bytes([rest[0], rest[1], rest[2], rest[3]]);
    if usize::from(rest[4]) != POINT_BYTES {
        return Err(format!("the key id has {} bytes, a public key has {POINT_BYTES}", rest[4]));
    }
    let (sender, record) = rest[5..].split_at(POINT_BYTES);
    let record_bytes = usize::try_from(record_bytes).unwrap_or(usize::MAX);
    if record_bytes < 18 {
        return Err("the record size is less than 18 (RFC 8188 §2)".to_owned());
    }
    if record.len() > record_bytes {
        return Err("there is more than one record (RFC 8291 §4)".to_owned());
    }
    let (key, nonce) = keys(salt, sender, private, public, auth)?;
    let key = UnboundKey::new(&AES_128_GCM, &key).map_err(|_| "AES-128-GCM takes no such key")?;
    let mut plain = record.to_vec();
    let opened = LessSafeKey::new(key)
        .open_in_place(Nonce::assume_unique_for_key(nonce), Aad::empty(), &mut plain)
        .map_err(|_| "the record does not open with the subscription's keys")?;
    let end = opened.iter().rposition(|&byte| byte != 0).ok_or("the record has no delimiter")?;
    if opened[end] != 2 {
        return Err("the delimiter of the last record is 2 (RFC 8188 §2)".to_owned());
    }
    Ok(opened[..end].to_vec())
}

/// Content encryption key and nonce (RFC 8291 §3.4). Each HKDF has one block, so HMAC is all of it.
fn keys(
    salt: &[u8],
    sender: &[u8],
    private: &PrivateKey,
    public: &[u8],
    auth: &[u8],
) -> Result<([u8; 16], [u8; 12]), String> {
    let sender_key = UnparsedPublicKey::new(&ECDH_P256, sender);
    let wrong = "the key id is no point of P-256".to_owned();
    let extracted = agree(private, sender_key, wrong, |secret| Ok(hmac(auth, &[secret])))?;
    let input = hmac(extracted.as_ref(), &[b"WebPush: info\0", public, sender, &[1]]);
    let extracted = hmac(salt, &[input.as_ref()]);
    let key = hmac(extracted.as_ref(), &[b"Content-Encoding: aes128gcm\0\x01"]);
    let nonce = hmac(extracted.as_ref(), &[b"Content-Encoding: nonce\0\x01"]);
    let (mut key_bytes, mut nonce_bytes) = ([0; 16], [0; 12]);
    key_bytes.copy_from_slice(&key.as_ref()[..16]);
    nonce_bytes.copy_from_slice(&nonce.as_ref()[..12]);
    Ok((key_bytes, nonce_bytes))
}

fn hmac(key: &[u8], parts: &[&[u8]]) -> Tag {
    sign(&Key::new(HMAC_SHA256, key), &parts.concat())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::base64url_bytes;

    /// RFC 8291 §5 and Appendix A.
    const BODY: &str = "DGv6ra1nlYgDCS1FRnbzlwAAEABBBP4z9KsN6nGRTbVYI_c7VJSPQTBtkgcy27mlmlMoZIIgDll6e3vCYLocInmYWAmS6TlzAC8wEqKK6PBru3jl7A_yl95bQpu6cVPTpK4Mqgkf1CXztLVBSt2Ks3oZwbuwXPXLWyouBWLVWGNWQexSgSxsj_Qulcy4a-fN";
    const PRIVATE: &str = "q1dXpw3UpT5VOmu_cf_v6ih07Aems3njxI-JWgLcM94";
    const PUBLIC: &str =
        "BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4";
    const AUTH: &str = "BTBZMqHH6r4Tts7J_aSIgg";

    fn opened(body: &[u8]) -> Result<Vec<u8>, String> {
        let read = |text: &str| base64url_bytes(text).unwrap();
        let private = PrivateKey::from_private_key(&ECDH_P256, &read(PRIVATE)).unwrap();
        assert_eq!(private.compute_public_key().unwrap().as_ref(), read(PUBLIC));
        open(body, &private, &read(PUBLIC), &read(AUTH))
    }

    #[test]
    fn the_example_of_rfc_8291_opens() {
        let body = base64url_bytes(BODY).unwrap();
        assert_eq!(opened(&body).unwrap(), b"When I grow up, I want to be a watermelon");
    }

    #[test]
    fn a_body_that_was_touched_does_not() {
        let body = base64url_bytes(BODY).unwrap();
        for at in [0, 25, body.len() - 1] {
            let mut touched = body.clone();
            touched[at] ^= 1;
            assert!(opened(&touched).is_err(), "byte {at}");
        }
        let mut longer = body.clone();
        longer[16..20].copy_from_slice(&18_u32.to_be_bytes());
        assert!(opened(&longer).unwrap_err().contains("more than one record"));
        longer[16..20].copy_from_slice(&17_u32.to_be_bytes());
        assert!(opened(&longer).unwrap_err().contains("less than 18"));
        assert!(opened(&body[..100]).is_err());
    }
}
