//! The PROXY protocol, versions 1 and 2 (HAProxy's specification, 2020/03/05): a load balancer that forwards TCP says first whose
//! connection it is. **Invariant:** not one byte behind the header is taken, and only whom the settings name is believed.

use ipnet::IpNet;
use ppp::{v1, v2};
use std::net::IpAddr;
use tokio::io::{AsyncRead, AsyncReadExt};

/// The longest header of version 1, its end of line included (§2.1).
const TEXT_BYTES_MAX: usize = 107;
/// What follows the first 16 bytes of version 2; load balancers add a few hundred bytes of their own.
const REST_BYTES_MAX: usize = 2_048;
/// With version, command, family and length.
const HEAD_BYTES: usize = SIGNATURE_BYTES + 4;
const SIGNATURE_BYTES: usize = v2::PROTOCOL_PREFIX.len();

/// Whether this peer begins with a header; one that does not is cut.
pub(crate) fn is_trusted(peer: IpAddr, from: &[IpNet]) -> bool {
    let peer = peer.to_canonical();
    from.iter().any(|net| net.contains(&peer))
}

/// Why there is no header.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HeaderError {
    #[error("no PROXY protocol header")]
    None,
    #[error("a PROXY protocol header that is too long")]
    TooLong,
    #[error("a PROXY protocol header that breaks off: {0}")]
    Io(#[from] std::io::Error),
}

/// Reads the header, and nothing behind it. `None`: the balancer speaks for itself, as in a health check.
pub(crate) async fn read_source<IO: AsyncRead + Unpin>(io: &mut IO) -> Result<Option<IpAddr>, HeaderError> {
    let mut header = vec![0; SIGNATURE_BYTES];
    io.read_exact(&mut header).await?;
    if header == v2::PROTOCOL_PREFIX {
        header.resize(HEAD_BYTES, 0);
        let lengths = header.get_mut(SIGNATURE_BYTES..).unwrap_or_default();
        io.read_exact(lengths).await?;
        let rest = usize::from(u16::from_be_bytes([header[HEAD_BYTES - 2], header[HEAD_BYTES - 1]]));
        if rest > REST_BYTES_MAX {
            return Err(HeaderError::TooLong);
        }
        header.resize(HEAD_BYTES + rest, 0);
        io.read_exact(header.get_mut(HEAD_BYTES..).unwrap_or_default()).await?;
        return binary(&header);
    }
    if !header.starts_with(v1::PROTOCOL_PREFIX.as_bytes()) {
        return Err(HeaderError::None);
    }
    // There is no length: byte by byte, so that the first message of TLS stays where it is.
    while !header.ends_with(b"\r\n") {
        if header.len() == TEXT_BYTES_MAX {
            return Err(HeaderError::TooLong);
        }
        header.push(io.read_u8().await?);
    }
    text(&header)
}

fn binary(header: &[u8]) -> Result<Option<IpAddr>, HeaderError> {
    let header = v2::Header::try_from(header).map_err(|_| HeaderError::None)?;
    Ok(match (header.command, header.addresses) {
        (v2::Command::Proxy, v2::Addresses::IPv4(of)) => Some(of.source_address.into()),
        (v2::Command::Proxy, v2::Addresses::IPv6(of)) => Some(of.source_address.into()),
        (v2::Command::Local | v2::Command::Proxy, _) => None,
    })
}

fn text(header: &[u8]) -> Result<Option<IpAddr>, HeaderError> {
    let header = v1::Header::try_from(header).map_err(|_| HeaderError::None)?;
    Ok(match header.addresses {
        v1::Addresses::Tcp4(of) => Some(of.source_address.into()),
        v1::Addresses::Tcp6(of) => Some(of.source_address.into()),
        v1::Addresses::Unknown => None,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    /// The header, and a first byte of TLS behind it, in pieces of this size.
    async fn read(header: &[u8], piece: usize) -> (Result<Option<IpAddr>, HeaderError>, Vec<u8>) {
        let mut whole = header.to_vec();
        whole.extend_from_slice(&[0x16, 3, 1]);
        let mut mock = tokio_test_reader(&whole, piece);
        let source = read_source(&mut mock).await;
        let mut behind = Vec::new();
        mock.read_to_end(&mut behind).await.unwrap();
        (source, behind)
    }

    fn tokio_test_reader(bytes: &[u8], piece: usize) -> impl AsyncRead + Unpin {
        let pieces: Vec<_> =
            bytes.chunks(piece).map(|piece| Ok(bytes::Bytes::copy_from_slice(piece))).collect();
        let stream = futures_util::stream::iter(pieces);
        tokio_util::io::StreamReader::new(futures_util::StreamExt::map(
            stream,
            |piece: Result<_, std::io::Error>| piece,
        ))
    }

    fn version_2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let mut header = v2::PROTOCOL_PREFIX.to_vec();
        header.extend([0x20 | command, family]);
        header.extend(u16::try_from(rest.len()).unwrap().to_be_bytes());
        header.extend_from_slice(rest);
        header
    }

    #[tokio::test]
    async fn both_versions_say_whose_connection_it_is_and_tls_stays_behind() {
        let four = [192, 0, 2, 7, 10, 0, 0, 1, 0x30, 0x39, 1, 0xbb];
        let mut noted = four.to_vec();
        // Something of the balancer's own (§2.2).
        noted.extend([0x04, 0, 2, 1, 1]);
        let mut six = vec![0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9];
        six.extend([0; 20]);
        let cases: [(Vec<u8>, Option<&str>); 9] = [
            (version_2(1, 0x11, &four), Some("192.0.2.7")),
            (version_2(1, 0x11, &noted), Some("192.0.2.7")),
            (version_2(1, 0x21, &six), Some("2001:db8::9")),
            (version_2(0, 0, &[]), None),
            (version_2(1, 0, &[]), None),
            (b"PROXY TCP4 192.0.2.7 10.0.0.1 12345 443\r\n".to_vec(), Some("192.0.2.7")),
            (b"PROXY TCP6 2001:db8::9 2001:db8::1 12345 443\r\n".to_vec(), Some("2001:db8::9")),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n".to_vec(), None),
        ];
        for (header, expected) in cases {
            for piece in [1, 5, 13, 4096] {
                let (source, behind) = read(&header, piece).await;
                let expected = expected.map(|address| address.parse().unwrap());
                assert_eq!(source.unwrap(), expected, "{header:?} in pieces of {piece}");
                assert_eq!(behind, [0x16, 3, 1]);
            }
        }
    }

    #[tokio::test]
    async fn what_is_no_header_ends_at_once_and_nothing_grows() {
        let none: [&[u8]; 5] = [
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\x00\x00\x00\x00",
            b"GET /v1/connect HTTP/1.1\r\n\r\n",
            b"PROXY TCP4 192.0.2.777 10.0.0.1 1 2\r\n",
            b"PROXY TCP9 192.0.2.7 10.0.0.1 1 2\r\n",
            &version_2(1, 0x11, &[192, 0, 2]),
        ];
        for header in none {
            assert!(matches!(read(header, 4096).await.0, Err(HeaderError::None)), "{header:?}");
        }
        let endless = [b"PROXY TCP4 ".as_slice(), &[b'1'; 4096]].concat();
        let (source, behind) = read(&endless, 4096).await;
        assert!(matches!(source, Err(HeaderError::TooLong)));
        assert_eq!(behind.len(), endless.len() + 3 - TEXT_BYTES_MAX);
        let long = version_2(1, 0x11, &[0; REST_BYTES_MAX + 1]);
        assert!(matches!(read(&long, 4096).await.0, Err(HeaderError::TooLong)));
        for cut in [0, 5, 12, 15, 20] {
            let whole = version_2(1, 0x11, &[192, 0, 2, 7, 10, 0, 0, 1, 1, 1, 1, 1]);
            let broken = read_source(&mut &whole[..cut]).await;
            assert!(matches!(broken, Err(HeaderError::Io(_))), "{cut}");
        }
    }

    #[test]
    fn an_address_is_trusted_by_its_network_in_either_notation() {
        let from: Vec<IpNet> = vec!["10.1.0.0/16".parse().unwrap(), "2001:db8::/32".parse().unwrap()];
        for (peer, trusted) in [
            ("10.1.2.3", true),
            ("::ffff:10.1.2.3", true),
            ("10.2.0.1", false),
            ("2001:db8::1", true),
            ("2001:db9::1", false),
        ] {
            assert_eq!(is_trusted(peer.parse().unwrap(), &from), trusted, "{peer}");
        }
        assert!(!is_trusted("10.1.2.3".parse().unwrap(), &[]));
    }
}
