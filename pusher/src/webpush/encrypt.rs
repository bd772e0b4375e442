//! Message encryption for Web Push (RFC 8291) as one record of `aes128gcm` (RFC 8188). **Invariant:** a fresh key and a
//! fresh salt for every message.

use aws_lc_rs::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::agreement::{ECDH_P256, PrivateKey, UnparsedPublicKey, agree};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Prk, Salt};
use chappe_protocol::world::World;
use zeroize::Zeroizing;

/// Size of a record; the only one that every push service takes (RFC 8291 §4).
const RECORD_BYTES: u32 = 4096;
/// Random scalars that are tried; one in 2^32 is no private key.
const SCALARS_MAX: usize = 8;

/// The keys of a subscription (RFC 8291 §2).
#[derive(Clone, Copy)]
pub(super) struct Subscription<'a> {
    /// An uncompressed point on P-256.
    pub(super) p256dh: &'a [u8; 65],
    pub(super) auth: &'a [u8; 16],
}

/// `None` if the subscription's point does not lie on the curve.
pub(super) fn encrypt(subscription: Subscription<'_>, plain: &[u8], world: &dyn World) -> Option<Vec<u8>> {
    let mut salt = [0; 16];
    world.fill_random(&mut salt);
    let mut scalar = Zeroizing::new([0; 32]);
    let key = (0..SCALARS_MAX).find_map(|_| {
        world.fill_random(&mut *scalar);
        PrivateKey::from_private_key(&ECDH_P256, &*scalar).ok()
    })?;
    encrypt_with(subscription, plain, &key, salt)
}

fn encrypt_with(
    subscription: Subscription<'_>,
    plain: &[u8],
    key: &PrivateKey,
    salt: [u8; 16],
) -> Option<Vec<u8>> {
    let ours = key.compute_public_key().ok()?;
    let theirs = UnparsedPublicKey::new(&ECDH_P256, subscription.p256dh);
    let input = agree(key, theirs, (), |shared| {
        let prk = Salt::new(HKDF_SHA256, subscription.auth).extract(shared);
        expand::<32>(&prk, &[b"WebPush: info\0", subscription.p256dh, ours.as_ref()]).ok_or(())
    });
    let prk = Salt::new(HKDF_SHA256, &salt).extract(&*input.ok()?);
    let content_key = expand::<16>(&prk, &[b"Content-Encoding: aes128gcm\0"])?;
    let nonce = expand::<12>(&prk, &[b"Content-Encoding: nonce\0"])?;

    let mut sealed = plain.to_vec();
    sealed.push(2); // the delimiter of the last record (RFC 8188 §2)
    let cipher = LessSafeKey::new(UnboundKey::new(&AES_128_GCM, &*content_key).ok()?);
    cipher.seal_in_place_append_tag(Nonce::assume_unique_for_key(*nonce), Aad::empty(), &mut sealed).ok()?;

    let mut body = Vec::with_capacity(86 + sealed.len());
    body.extend_from_slice(&salt);
    body.extend_from_slice(&RECORD_BYTES.to_be_bytes());
    body.push(65);
    body.extend_from_slice(ours.as_ref());
    body.extend_from_slice(&sealed);
    Some(body)
}

struct Length(usize);

impl KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

fn expand<const N: usize>(prk: &Prk, info: &[&[u8]]) -> Option<Zeroizing<[u8; N]>> {
    let mut out = Zeroizing::new([0; N]);
    prk.expand(info, Length(N)).ok()?.fill(&mut *out).ok()?;
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;

    fn bytes<const N: usize>(text: &str) -> [u8; N] {
        URL_SAFE_NO_PAD.decode(text).unwrap().try_into().unwrap()
    }

    /// RFC 8291 appendix A.
    #[test]
    fn the_example_of_the_rfc() {
        let p256dh =
            bytes("BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4");
        let auth = bytes("BTBZMqHH6r4Tts7J_aSIgg");
        let scalar: [u8; 32] = bytes("yfWPiYE-n46HLnH0KqZOF1fJJU3MYrct3AELtAQ-oRw");
        let key = PrivateKey::from_private_key(&ECDH_P256, &scalar).unwrap();
        let plain = b"When I grow up, I want to be a watermelon";
        let subscription = Subscription { p256dh: &p256dh, auth: &auth };
        let body = encrypt_with(subscription, plain, &key, bytes("DGv6ra1nlYgDCS1FRnbzlw")).unwrap();
        assert_eq!(
            URL_SAFE_NO_PAD.encode(body),
            "DGv6ra1nlYgDCS1FRnbzlwAAEABBBP4z9KsN6nGRTbVYI_c7VJSPQTBtkgcy27mlmlMoZIIgDll6e3vCYLocInmYWAmS6TlzAC8wEqKK6PBru3jl\
             7A_yl95bQpu6cVPTpK4Mqgkf1CXztLVBSt2Ks3oZwbuwXPXLWyouBWLVWGNWQexSgSxsj_Qulcy4a-fN"
        );
    }

    #[test]
    fn a_point_beside_the_curve_is_refused() {
        let mut p256dh = [7; 65];
        p256dh[0] = 4;
        let key = PrivateKey::from_private_key(&ECDH_P256, &[1; 32]).unwrap();
        let subscription = Subscription { p256dh: &p256dh, auth: &[0; 16] };
        assert_eq!(encrypt_with(subscription, b"", &key, [0; 16]), None);
    }
}
