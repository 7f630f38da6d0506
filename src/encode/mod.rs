//! PostgreSQL's binary values as JSON bytes. Pure: no clock, no I/O, and on the row path no allocation but the
//! growth of `out`.
//!
//! Owns the choice of an encoding for each type, and what the query must do to get it. One file a family of
//! types: [`number`], [`string`], [`datetime`], [`json`], [`network`], [`nested`]; [`row`] puts values into
//! lines, [`reader`] takes PostgreSQL's framing apart.

mod datetime;
mod json;
mod nested;
mod network;
mod number;
mod reader;
mod row;
mod string;

use tokio_postgres::types::{Field, Kind, Type};

use nested::Attribute;

pub(crate) use row::{RowEncoder, RowError, SystemColumns};

/// The first OID that is not PostgreSQL's own (`FirstNormalObjectId`).
const FIRST_NORMAL_OID: u32 = 16_384;

/// How one column's binary value becomes JSON.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Encoding {
    Bool,
    Int2,
    Int4,
    Int8,
    /// oid, xid, cid and the `reg` types: a number, for what it names can change.
    Oid,
    Float4,
    Float8,
    Numeric,
    /// Every type whose binary form is its text.
    Text,
    /// `"char"`, a single byte.
    Char,
    Json,
    Jsonb,
    Timestamp,
    TimestampTz,
    Date,
    Time,
    TimeTz,
    Interval,
    Bytea,
    Uuid,
    /// inet and cidr.
    Network,
    MacAddr,
    MacAddr8,
    Array(Box<Encoding>),
    Composite(Vec<Attribute>),
    Hstore,
}

/// What the query must do with a column, so that its values arrive as its encoding reads them.
///
/// A cast's text depends on the session: `timezone` must be UTC, `datestyle` ISO, and `intervalstyle`,
/// `lc_monetary`, `bytea_output` and `search_path` the same in every session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cast {
    /// Select it as it is.
    None,
    /// `column::text`
    Text,
    /// `column::text[]`
    TextArray,
}

/// Why a value could not be written; never holds the value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unencodable {
    pub(crate) reason: &'static str,
}

impl Encoding {
    /// Whether its JSON is a single string, number or boolean, whose text PostgreSQL reads back.
    pub(crate) fn is_scalar(&self) -> bool {
        !matches!(self, Self::Array(_) | Self::Composite(_) | Self::Hstore | Self::Json | Self::Jsonb)
    }

    /// The encoding of the values of `ty`, and the cast that it needs.
    ///
    /// Where a type has no encoding of its own, PostgreSQL's text is asked for: of the whole value, or of each
    /// element of an array. A composite that holds such a type anywhere is text as a whole.
    pub(crate) fn select(ty: &Type) -> (Cast, Self) {
        if let Some(encoding) = Self::of(ty) {
            (Cast::None, encoding)
        } else if is_array(ty) {
            (Cast::TextArray, Self::Array(Box::new(Self::Text)))
        } else {
            (Cast::Text, Self::Text)
        }
    }

    /// Appends `value`, a binary value of this encoding that is not null, as JSON.
    ///
    /// # Errors
    /// A part of it may then stand in `out`.
    #[inline]
    pub(crate) fn write(&self, value: &[u8], out: &mut Vec<u8>) -> Result<(), Unencodable> {
        match self {
            Self::Bool => number::write_bool(value, out),
            Self::Int2 => number::write_int2(value, out),
            Self::Int4 => number::write_int4(value, out),
            Self::Int8 => number::write_int8(value, out),
            Self::Oid => number::write_oid(value, out),
            Self::Float4 => number::write_float4(value, out),
            Self::Float8 => number::write_float8(value, out),
            Self::Numeric => number::write_numeric(value, out),
            Self::Text => string::write_text(value, out),
            Self::Char => string::write_char(value, out),
            Self::Json => json::write_json(value, out),
            Self::Jsonb => json::write_jsonb(value, out),
            Self::Timestamp => datetime::write_timestamp(value, out),
            Self::TimestampTz => datetime::write_timestamptz(value, out),
            Self::Date => datetime::write_date(value, out),
            Self::Time => datetime::write_time(value, out),
            Self::TimeTz => datetime::write_timetz(value, out),
            Self::Interval => datetime::write_interval(value, out),
            Self::Bytea => string::write_bytea(value, out),
            Self::Uuid => string::write_uuid(value, out),
            Self::Network => network::write_network(value, out),
            Self::MacAddr => network::write_mac::<6>(value, out),
            Self::MacAddr8 => network::write_mac::<8>(value, out),
            Self::Array(element) => nested::write_array(element, value, out),
            Self::Composite(attributes) => nested::write_composite(attributes, value, out),
            Self::Hstore => nested::write_hstore(value, out),
        }
    }

    /// The encoding of `ty` as it is sent, or `None` where its text must be asked for.
    fn of(ty: &Type) -> Option<Self> {
        match ty.kind() {
            Kind::Simple => Self::of_simple(ty),
            Kind::Enum(_) => Some(Self::Text),
            Kind::Domain(base) => Self::of(base),
            Kind::Array(element) if is_array(ty) => {
                Self::of(element).map(|element| Self::Array(Box::new(element)))
            }
            Kind::Composite(fields) => Self::of_composite(fields),
            // Ranges, multiranges and pseudo-types; the enum may grow.
            _ => None,
        }
    }

    fn of_simple(ty: &Type) -> Option<Self> {
        Some(match *ty {
            Type::BOOL => Self::Bool,
            Type::INT2 => Self::Int2,
            Type::INT4 => Self::Int4,
            Type::INT8 => Self::Int8,
            Type::OID | Type::XID | Type::CID => Self::Oid,
            Type::REGCLASS | Type::REGTYPE | Type::REGROLE | Type::REGNAMESPACE => Self::Oid,
            Type::REGPROC | Type::REGPROCEDURE | Type::REGOPER | Type::REGOPERATOR => Self::Oid,
            Type::REGCONFIG | Type::REGDICTIONARY | Type::REGCOLLATION => Self::Oid,
            Type::FLOAT4 => Self::Float4,
            Type::FLOAT8 => Self::Float8,
            Type::NUMERIC => Self::Numeric,
            Type::TEXT | Type::VARCHAR | Type::BPCHAR | Type::NAME | Type::XML => Self::Text,
            Type::CHAR => Self::Char,
            Type::JSON => Self::Json,
            Type::JSONB => Self::Jsonb,
            Type::TIMESTAMP => Self::Timestamp,
            Type::TIMESTAMPTZ => Self::TimestampTz,
            Type::DATE => Self::Date,
            Type::TIME => Self::Time,
            Type::TIMETZ => Self::TimeTz,
            Type::INTERVAL => Self::Interval,
            Type::BYTEA => Self::Bytea,
            Type::UUID => Self::Uuid,
            Type::INET | Type::CIDR => Self::Network,
            Type::MACADDR => Self::MacAddr,
            Type::MACADDR8 => Self::MacAddr8,
            // The types of extensions have another OID in each database.
            _ => match ty.name() {
                "citext" => Self::Text,
                "hstore" => Self::Hstore,
                _ => return None,
            },
        })
    }

    fn of_composite(fields: &[Field]) -> Option<Self> {
        fields
            .iter()
            .enumerate()
            .map(|(index, field)| {
                let type_oid = field.type_().oid();
                let encoding = Self::of(field.type_())?;
                Some(Attribute::new(index, field.name(), type_oid, encoding))
            })
            .collect::<Option<_>>()
            .map(Self::Composite)
    }
}

/// Whether values of `ty` are arrays. A base type that was made with `element = …` has elements as well, but a
/// binary form of its own; the names of true arrays begin with an underscore (`makeArrayTypeName`).
fn is_array(ty: &Type) -> bool {
    match ty.kind() {
        Kind::Array(_) => ty.oid() < FIRST_NORMAL_OID || ty.name().starts_with('_'),
        Kind::Domain(base) => is_array(base),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::time::{SystemTime, UNIX_EPOCH};

    use super::*;

    /// The bytes that `hex` stands for; spaces do not count.
    pub(super) fn bytes(hex: &str) -> Vec<u8> {
        let digits: Vec<u32> = hex.chars().filter_map(|digit| digit.to_digit(16)).collect();
        digits.chunks(2).map(|pair| u8::try_from(pair[0] * 16 + pair[1]).expect("two digits")).collect()
    }

    pub(super) fn encoded(encoding: &Encoding, hex: &str) -> Result<String, Unencodable> {
        let mut out = Vec::new();
        encoding.write(&bytes(hex), &mut out)?;
        Ok(String::from_utf8(out).expect("UTF-8"))
    }

    fn custom(name: &str, kind: Kind) -> Type {
        Type::new(name.to_owned(), 16_500, kind, "public".to_owned())
    }

    fn composite(types: &[Type]) -> Type {
        let fields = types.iter().map(|ty| Field::new(ty.name().to_owned(), ty.clone()));
        custom("pair", Kind::Composite(fields.collect()))
    }

    fn array_of(element: Encoding) -> Encoding {
        Encoding::Array(Box::new(element))
    }

    #[test]
    fn types_with_an_encoding_are_selected_as_they_are() {
        for (ty, encoding) in [
            (Type::BOOL, Encoding::Bool),
            (Type::BPCHAR, Encoding::Text),
            (Type::CHAR, Encoding::Char),
            (Type::CIDR, Encoding::Network),
            (Type::REGCLASS, Encoding::Oid),
            (Type::JSONB_ARRAY, array_of(Encoding::Jsonb)),
            (Type::INT2_VECTOR, array_of(Encoding::Int2)),
            (custom("citext", Kind::Simple), Encoding::Text),
            (custom("hstore", Kind::Simple), Encoding::Hstore),
            (custom("mood", Kind::Enum(vec!["ok".to_owned()])), Encoding::Text),
        ] {
            assert_eq!(Encoding::select(&ty), (Cast::None, encoding), "{ty}");
        }
    }

    #[test]
    fn domains_are_their_base_types() {
        let positive = custom("positive", Kind::Domain(Type::INT4));
        let very = custom("very_positive", Kind::Domain(positive.clone()));
        assert_eq!(Encoding::select(&very), (Cast::None, Encoding::Int4));
        let list = custom("list", Kind::Domain(custom("_positive", Kind::Array(positive))));
        assert_eq!(Encoding::select(&list), (Cast::None, array_of(Encoding::Int4)));
        let span = custom("span", Kind::Domain(Type::INT4_RANGE));
        assert_eq!(Encoding::select(&span), (Cast::Text, Encoding::Text));
    }

    #[test]
    fn types_without_an_encoding_are_asked_for_as_text() {
        for ty in [
            Type::MONEY,
            Type::BIT,
            Type::VARBIT,
            Type::TS_VECTOR,
            Type::TSQUERY,
            Type::POINT,
            Type::PG_LSN,
            Type::XID8,
            Type::TID,
            Type::INT4_RANGE,
            Type::INT4MULTI_RANGE,
            Type::RECORD,
            custom("ltree", Kind::Simple),
            custom("vector", Kind::Simple),
            custom("span", Kind::Range(Type::FLOAT8)),
        ] {
            assert_eq!(Encoding::select(&ty), (Cast::Text, Encoding::Text), "{ty}");
        }
    }

    #[test]
    fn arrays_without_an_encoding_are_asked_for_as_arrays_of_text() {
        let ltree = custom("ltree", Kind::Simple);
        let span = custom("span", Kind::Domain(Type::INT4_RANGE_ARRAY));
        for ty in [
            Type::MONEY_ARRAY,
            Type::INT4_RANGE_ARRAY,
            custom("_ltree", Kind::Array(ltree)),
            custom("_pair", Kind::Array(composite(&[Type::INT4, Type::POINT]))),
            custom("_span", Kind::Array(span.clone())),
            span,
        ] {
            let expected = (Cast::TextArray, array_of(Encoding::Text));
            assert_eq!(Encoding::select(&ty), expected, "{ty}");
        }
    }

    #[test]
    fn a_base_type_with_elements_is_no_array() {
        let ty = custom("triple", Kind::Array(Type::FLOAT8));
        assert_eq!(Encoding::select(&ty), (Cast::Text, Encoding::Text));
        let ty = custom("_triple", Kind::Array(ty));
        assert_eq!(Encoding::select(&ty), (Cast::TextArray, array_of(Encoding::Text)));
    }

    #[test]
    fn a_composite_is_text_as_a_whole_if_any_attribute_is() {
        let (cast, encoding) = Encoding::select(&composite(&[Type::INT4, Type::TEXT]));
        assert_eq!(cast, Cast::None);
        let row = "00000002 00000017 00000004 00000007 00000019 00000001 61";
        assert_eq!(encoded(&encoding, row), Ok(r#"{"int4":7,"text":"a"}"#.to_owned()));
        let holds_range = composite(&[Type::INT4, Type::INT4_RANGE]);
        assert_eq!(Encoding::select(&holds_range), (Cast::Text, Encoding::Text));
        let nested = composite(&[holds_range]);
        assert_eq!(Encoding::select(&nested), (Cast::Text, Encoding::Text));
    }

    /// A value of each encoding, as PostgreSQL 15 sent it.
    fn samples() -> Vec<(Encoding, Vec<u8>)> {
        let (_, pair) = Encoding::select(&composite(&[Type::INT4, Type::TEXT]));
        let ints = "000000020000000000000017000000010000000100000002000000010000000400000001ffffffff";
        let pairs = concat!(
            "0000000100000000000041a800000002000000010000001900000002000000170000000400000002",
            "000000190000000179ffffffff",
        );
        [
            (Encoding::Bool, "01"),
            (Encoding::Int2, "8000"),
            (Encoding::Int4, "7fffffff"),
            (Encoding::Int8, "8000000000000000"),
            (Encoding::Oid, "000004eb"),
            (Encoding::Float4, "3dcccccd"),
            (Encoding::Float8, "4480f0cf064dd592"),
            (Encoding::Numeric, "0003000140000004270f270f270f"),
            (Encoding::Text, "61220a c3a9 f09fa680 6162636465666768"),
            (Encoding::Char, "80"),
            (Encoding::Json, "7b2261223a200a5b31202c20225c2220225d7d"),
            (Encoding::Jsonb, "017b2261223a20317d"),
            (Encoding::Timestamp, "000303d5f4ccfa40"),
            (Encoding::TimestampTz, "ff1af9deec5b2000"),
            (Encoding::Date, "fff4dbf8"),
            (Encoding::Time, "000000141dd76000"),
            (Encoding::TimeTz, "00000000000000000000e0ff"),
            (Encoding::Interval, "000000036c9361a0000000030000000e"),
            (Encoding::Bytea, "666f6f6261"),
            (Encoding::Uuid, "a0eebc999c0b4ef8bb6d6bb9bd380a11"),
            (Encoding::Network, "0340001020010db8000000000000000000000001"),
            (Encoding::MacAddr, "08002b010203"),
            (Encoding::MacAddr8, "08002b0102030405"),
            (array_of(Encoding::Int4), ints),
            (array_of(pair.clone()), pairs),
            (pair, "000000020000001700000004000000010000001900000001 78"),
            (Encoding::Hstore, "000000020000000161000000022278000000016bffffffff"),
        ]
        .map(|(encoding, hex)| (encoding, bytes(hex)))
        .into()
    }

    /// Writes `value`, and holds what was written against what every value must be.
    fn write_checked(encoding: &Encoding, value: &[u8]) -> Result<(), Unencodable> {
        let mut out = Vec::new();
        encoding.write(value, &mut out)?;
        let text = std::str::from_utf8(&out).expect("UTF-8");
        assert!(!text.contains('\n'), "{encoding:?} wrote a newline");
        // The server's own JSON is trusted to be JSON; random bytes are not.
        if !matches!(encoding, Encoding::Json | Encoding::Jsonb) {
            serde_json::from_str::<serde::de::IgnoredAny>(text).expect("JSON");
        }
        Ok(())
    }

    #[test]
    fn every_encoding_writes_json() {
        for (encoding, value) in samples() {
            assert_eq!(write_checked(&encoding, &value), Ok(()), "{encoding:?}");
        }
    }

    #[test]
    fn values_cut_short_never_panic_and_are_refused_where_their_length_is_known() {
        for (encoding, value) in samples() {
            let has_no_length =
                matches!(encoding, Encoding::Text | Encoding::Bytea | Encoding::Json | Encoding::Jsonb);
            for length in 0..value.len() {
                let result = write_checked(&encoding, &value[..length]);
                assert!(has_no_length || result.is_err(), "{encoding:?} {length}");
            }
        }
    }

    #[test]
    fn random_and_mutated_bytes_never_panic_and_never_become_broken_json() {
        let mut random = Random::seeded();
        let samples = samples();
        for _ in 0..2_000 {
            for (encoding, value) in &samples {
                let length = random.below(40);
                let noise: Vec<u8> = (0..length).map(|_| random.byte()).collect();
                let _ = write_checked(encoding, &noise);
                let mut mutated = value.clone();
                for _ in 0..=random.below(3) {
                    let place = random.below(mutated.len());
                    mutated[place] = random.byte();
                }
                let _ = write_checked(encoding, &mutated);
            }
        }
    }

    /// Marsaglia's xorshift64.
    struct Random(u64);

    impl Random {
        /// Seeded from `ENCODE_SEED`, or from the clock; a test that fails shows the seed.
        fn seeded() -> Self {
            let clock = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock");
            let seed = std::env::var("ENCODE_SEED").map_or_else(
                |_| clock.as_nanos() as u64,
                |seed| seed.parse().expect("ENCODE_SEED is a number"),
            );
            println!("ENCODE_SEED={seed}");
            Self(seed | 1)
        }

        fn word(&mut self) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0
        }

        fn below(&mut self, limit: usize) -> usize {
            (self.word() >> 33) as usize % limit
        }

        fn byte(&mut self) -> u8 {
            // Small and extreme bytes are where lengths and digits break.
            match self.word() >> 60 {
                0..=3 => 0,
                4..=5 => 0xff,
                6..=9 => self.word() as u8 & 7,
                _ => (self.word() >> 24) as u8,
            }
        }
    }
}
