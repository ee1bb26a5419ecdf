// Package tlsrecord is the record layer of TLS 1.3 (RFC 8446 section 5) for a
// connection whose handshake crypto/tls has done: it seals and opens records in
// place, answers and sends KeyUpdates, and reads alerts. It does no I/O, knows
// nothing of certificates, and has no cipher: its caller says whose AES-GCM it is
// to use. docs/record-layer.md says why it is right.
//
// A Session belongs to one goroutine at a time.
package tlsrecord

import (
	"crypto/fips140"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/heddle-mesh/heddle/internal/hbone/flood"
)

const (
	// HeaderBytes is the length of a record's header (RFC 8446 section 5.1).
	HeaderBytes = 5
	// MaxPlaintext is the most that one record carries (section 5.1).
	MaxPlaintext = 1 << 14
	// Overhead is what a record needs beside its plaintext: header, inner
	// content type and authentication tag, which all suites have in common.
	Overhead = HeaderBytes + 1 + tagBytes
	// MaxCiphertext is the most that may follow a record's header (section 5.2).
	MaxCiphertext = MaxPlaintext + 256

	tagBytes = 16
	// version is legacy_record_version (section 5.1).
	version = 0x0303
	// recordsPerKey is when we change our key. Section 5.5 allows 2^24.5 full
	// records under one AES-GCM key.
	recordsPerKey = 1 << 24
	// maxUseless bounds the records in a row that carry no data: a peer could
	// make us decrypt, and derive keys, for nothing.
	maxUseless = 32
	// maxHandshake bounds one post-handshake message. A NewSessionTicket's
	// ticket alone may have 2^16-1 bytes by section 4.6.1; nobody needs that.
	maxHandshake = 1 << 14
)

// Content types (RFC 8446 section 5.1).
const (
	typeAlert       = 21
	typeHandshake   = 22
	typeApplication = 23
)

// Messages after the handshake (section 4).
const (
	messageTicket    = 4
	messageKeyUpdate = 24
)

// Alert is an alert's description (RFC 8446 section 6). It is an error when it
// is what a peer sent.
type Alert uint8

// The alerts that this package sends, or tells from others.
const (
	CloseNotify       Alert = 0
	UnexpectedMessage Alert = 10
	BadRecordMAC      Alert = 20
	RecordOverflow    Alert = 22
	DecodeError       Alert = 50
	IllegalParameter  Alert = 47
	InternalError     Alert = 80
	UserCanceled      Alert = 90
	alertLevelWarning       = 1
	alertLevelFatal         = 2
)

// Error names the alert by its number.
func (a Alert) Error() string { return fmt.Sprintf("TLS alert %d", uint8(a)) }

// ErrClosed is what Open returns for the peer's close_notify: it will send
// nothing more. We may still send (section 6.1).
var ErrClosed = errors.New("peer sent close_notify")

// RecordError is a record that breaks the rules. The connection is lost; the
// alert tells the peer why.
type RecordError struct {
	Alert  Alert
	reason string
}

// Error says what is wrong with the record.
func (e *RecordError) Error() string { return "TLS record: " + e.reason }

func broken(a Alert, reason string) error { return &RecordError{a, reason} }

// State is a session as a plain value. It is a secret.
type State struct {
	In, Out Keys
	// Fragment is the beginning of a handshake message whose end has not come.
	Fragment []byte
	// Useless counts records in a row that carried no data.
	Useless int
	// UpdateDue says that a KeyUpdate is to go out before the next record.
	UpdateDue bool
	// Updates counts the peer's KeyUpdates.
	Updates flood.Bucket `json:",omitzero"`
	// Server says that we are the server. Whoever keeps a state knows that.
	Server bool `json:"-"`
}

// Session is the record layer of one connection.
type Session struct {
	in, out   half
	fragment  []byte
	useless   int
	updateDue bool
	updates   flood.KeyUpdates
	server    bool
}

// Check says whether a session of ours can have the state. New believes its
// caller; a state that came from elsewhere is checked before.
func (s *State) Check() error {
	if s.Out.Sequence > recordsPerKey || len(s.Fragment) > maxHandshake+4 || s.Useless < 0 || s.Useless > maxUseless {
		return errors.New("state of a session is out of range")
	}
	return nil
}

// ErrFIPS140 is why there is no Session in FIPS 140-3 mode: a validated module must
// choose the nonces of AES-GCM itself, which this record layer does (SP 800-38D,
// section 8.2; FIPS 140-3 IG C.H).
var ErrFIPS140 = errors.New("heddle's own record layer is refused in FIPS 140-3 mode; remedy: use the reference engine")

// New goes on from a state, which it owns from then on. gcm makes the AES-GCM of
// its keys; nil is the standard library's. In FIPS 140-3 mode it returns ErrFIPS140.
func New(s State, gcm GCM) (*Session, error) {
	if fips140.Enabled() {
		return nil, ErrFIPS140
	}
	if gcm == nil {
		gcm = StandardGCM
	}
	t := &Session{fragment: s.Fragment, useless: s.Useless, updateDue: s.UpdateDue, updates: flood.NewKeyUpdates(s.Updates), server: s.Server}
	t.in.gcm, t.out.gcm = gcm, gcm
	if err := t.in.install(s.In); err != nil {
		return nil, fmt.Errorf("install keys to read: %w", err)
	}
	if err := t.out.install(s.Out); err != nil {
		return nil, fmt.Errorf("install keys to write: %w", err)
	}
	return t, nil
}

// State returns a copy of what New needs to go on. The session must not seal
// another record after whoever has the copy did: two records with one nonce
// give the key away.
func (t *Session) State() State {
	clone := func(k Keys) Keys { k.Secret = append([]byte(nil), k.Secret...); return k }
	return State{In: clone(t.in.keys), Out: clone(t.out.keys), Fragment: append([]byte(nil), t.fragment...), Useless: t.useless, UpdateDue: t.updateDue, Updates: t.updates.State(), Server: t.server}
}

// Wipe forgets the keys, at the connection's end: Open refuses from then on, and
// what seals makes no record. It may be called again.
func (t *Session) Wipe() {
	t.in.wipe()
	t.out.wipe()
	clear(t.fragment)
	t.fragment, t.useless, t.updateDue = nil, 0, false
}

// Held is the number of bytes of memory that the beginning of a handshake message
// takes; 0 when there is none.
func (t *Session) Held() int { return cap(t.fragment) }

// Length returns how many bytes the record that begins with head has in all;
// false when head is shorter than its header. A length that no record may have
// is an error, before the record is waited for.
func Length(head []byte) (n int, ok bool, err error) {
	if len(head) < HeaderBytes {
		return 0, false, nil
	}
	n = int(binary.BigEndian.Uint16(head[3:]))
	if n > MaxCiphertext {
		return 0, false, broken(RecordOverflow, "longer than 2^14+256 bytes") // section 5.2
	}
	return HeaderBytes + n, true, nil
}

// Open decrypts one whole record in place and returns its data, which is empty
// for records of other types; they are dealt with here. The error is ErrClosed,
// an Alert that the peer sent, or a RecordError.
func (t *Session) Open(record []byte) ([]byte, error) {
	if record[0] != typeApplication {
		// Encrypted records all look like data (section 5.2), and there is no
		// change_cipher_spec after the handshake (section 5).
		return nil, broken(UnexpectedMessage, "not encrypted")
	}
	if t.in.aead == nil {
		return nil, broken(InternalError, "keys are wiped")
	}
	if t.in.keys.Sequence == ^uint64(0) {
		return nil, broken(InternalError, "sequence numbers used up")
	}
	plain, err := t.in.aead.Open(record[HeaderBytes:HeaderBytes], t.in.next(), record[HeaderBytes:], record[:HeaderBytes])
	if err != nil {
		return nil, broken(BadRecordMAC, "does not authenticate")
	}
	if len(plain) > MaxPlaintext+1 {
		return nil, broken(RecordOverflow, "plaintext longer than 2^14 bytes")
	}
	end := len(plain) - 1
	for end >= 0 && plain[end] == 0 { // padding (section 5.4)
		end--
	}
	if end < 0 {
		return nil, broken(UnexpectedMessage, "nothing but padding") // section 5.4
	}
	data := plain[:end]
	if len(t.fragment) > 0 && plain[end] != typeHandshake {
		return nil, broken(UnexpectedMessage, "something inside a handshake message") // section 5.1
	}
	switch plain[end] {
	case typeApplication:
		if len(data) > 0 {
			t.useless = 0
			t.updates.Earn(len(data))
			return data, nil
		}
		return nil, t.waste() // legal, as protection from traffic analysis
	case typeHandshake:
		return nil, t.handshake(data)
	case typeAlert:
		return nil, t.alert(data)
	default:
		return nil, broken(UnexpectedMessage, "of unknown type")
	}
}

func (t *Session) waste() error {
	if t.useless++; t.useless > maxUseless {
		return broken(UnexpectedMessage, "too many in a row without data")
	}
	return nil
}

// alert reads an alert (section 6). All but two end the connection, whatever
// level they claim.
func (t *Session) alert(data []byte) error {
	if len(data) != 2 {
		return broken(DecodeError, "alert of another length than 2") // section 5.1: never fragmented
	}
	switch a := Alert(data[1]); a {
	case CloseNotify:
		return ErrClosed
	case UserCanceled:
		return t.waste() // a close_notify follows (section 6.1)
	default:
		return a
	}
}

// handshake reads messages, which may come in pieces and several in one record
// (section 5.1). A piece that neither begins nor ends one is no waste: records may be
// as small as a peer likes, and a message has its bound.
func (t *Session) handshake(data []byte) error {
	if len(data) == 0 {
		return broken(UnexpectedMessage, "empty handshake fragment") // section 5.1
	}
	begins, rest := len(t.fragment) == 0, append(t.fragment, data...)
	if n, err := t.messageBytes(rest); err != nil {
		return err
	} else if !begins && (n == 0 || n > len(rest)) {
		t.fragment = rest
		return nil
	}
	if err := t.waste(); err != nil {
		return err
	}
	for len(rest) > 0 {
		n, err := t.messageBytes(rest)
		if err != nil {
			return err
		}
		if n == 0 || n > len(rest) {
			break
		}
		kind, body := rest[0], rest[4:n]
		if rest = rest[n:]; kind == messageKeyUpdate {
			err = t.takeUpdate(body, len(rest) == 0)
		} else {
			err = checkTicket(body)
		}
		if err != nil {
			return err
		}
	}
	t.fragment = append([]byte(nil), rest...) // not the array: what was before it is gone
	return nil
}

// messageBytes is the length of the message that b begins with, 0 as long as that
// is not known. What is refused is not waited for: of a client, no more than a
// KeyUpdate's five bytes are ever kept.
func (t *Session) messageBytes(b []byte) (int, error) {
	switch {
	case b[0] == messageTicket && t.server:
		return 0, broken(UnexpectedMessage, "NewSessionTicket from a client") // sections 4 and 4.6.1
	case b[0] != messageTicket && b[0] != messageKeyUpdate:
		// A CertificateRequest too: we do not offer post_handshake_auth (section 4.6.2).
		return 0, broken(UnexpectedMessage, "handshake message out of place")
	case len(b) < 4:
		return 0, nil
	}
	n := int(b[1])<<16 | int(b[2])<<8 | int(b[3])
	switch {
	case n > maxHandshake:
		return 0, broken(DecodeError, "handshake message too long")
	case b[0] == messageKeyUpdate && n != 1:
		return 0, broken(DecodeError, "malformed KeyUpdate")
	}
	return 4 + n, nil
}

// checkTicket reads a NewSessionTicket (section 4.6.1), which is not kept:
// resumption would skip verification.
func checkTicket(b []byte) error {
	malformed := broken(DecodeError, "malformed NewSessionTicket")
	if len(b) < 9 {
		return malformed
	}
	b = b[8:]                                       // lifetime and age
	for _, lengthBytes := range [...]int{1, 2, 2} { // nonce, ticket, extensions
		if len(b) < lengthBytes {
			return malformed
		}
		n := int(b[0])
		if lengthBytes == 2 {
			n = n<<8 | int(b[1])
		}
		if len(b) < lengthBytes+n {
			return malformed
		}
		b = b[lengthBytes+n:]
	}
	if len(b) != 0 {
		return malformed
	}
	return nil
}

// takeUpdate changes the key we read with (section 4.6.3).
func (t *Session) takeUpdate(body []byte, last bool) error {
	switch {
	case body[0] > 1:
		return broken(IllegalParameter, "KeyUpdate request neither 0 nor 1")
	case !last:
		return broken(UnexpectedMessage, "message spans a change of keys") // section 5.1
	case !t.updates.Spend():
		return broken(UnexpectedMessage, "too many KeyUpdates")
	}
	if err := t.in.update(); err != nil {
		return broken(InternalError, err.Error())
	}
	// However many are asked for before we send again, one answers them.
	t.updateDue = t.updateDue || body[0] == 1
	return nil
}

// Seal makes a record of data in place: n bytes of plaintext are in
// buf[HeaderBytes:], and buf has room for n+Overhead bytes. It returns the
// record's length. UpdateDue must be false and n at most MaxPlaintext. A wiped
// session makes none: the length is 0, and buf as it was.
func (t *Session) Seal(buf []byte, n int) int { return t.seal(buf, n, typeApplication) }

func (t *Session) seal(buf []byte, n int, kind byte) int {
	if n > MaxPlaintext || t.out.keys.Sequence > recordsPerKey {
		panic("tlsrecord: record beyond a limit") // the caller's mistake; never seal it
	}
	if t.out.aead == nil {
		return 0
	}
	total := n + Overhead
	buf = buf[:total]
	buf[0] = typeApplication
	binary.BigEndian.PutUint16(buf[1:], version)
	binary.BigEndian.PutUint16(buf[3:], uint16(total-HeaderBytes))
	buf[HeaderBytes+n] = kind
	t.out.aead.Seal(buf[HeaderBytes:HeaderBytes], t.out.next(), buf[HeaderBytes:HeaderBytes+n+1], buf[:HeaderBytes])
	return total
}

// UpdateBytes is the length of the record that AppendUpdate appends.
const UpdateBytes = 5 + Overhead

// UpdateDue says whether a KeyUpdate must go out before the next record: the
// peer asked for it, or the key has sealed as much as it may.
func (t *Session) UpdateDue() bool {
	return t.updateDue || t.out.keys.Sequence >= recordsPerKey
}

// RecordsLeft is how many records may be sealed before a KeyUpdate must go out,
// if the peer asks for none.
func (t *Session) RecordsLeft() int {
	if t.UpdateDue() {
		return 0
	}
	return int(recordsPerKey - t.out.keys.Sequence)
}

// AppendUpdate appends the record of a KeyUpdate to buf and changes the key we
// write with (section 4.6.3). It asks the peer for none: its limits are its own.
func (t *Session) AppendUpdate(buf []byte) ([]byte, error) {
	buf = t.appendRecord(buf, typeHandshake, []byte{messageKeyUpdate, 0, 0, 1, 0})
	t.updateDue = false // update fails on a wiped session
	return buf, t.out.update()
}

// AppendAlert appends the record of an alert, which is the last that is sent.
func (t *Session) AppendAlert(buf []byte, a Alert) []byte {
	level := byte(alertLevelFatal)
	if a == CloseNotify || a == UserCanceled {
		level = alertLevelWarning
	}
	return t.appendRecord(buf, typeAlert, []byte{level, byte(a)})
}

func (t *Session) appendRecord(buf []byte, kind byte, data []byte) []byte {
	start := len(buf)
	buf = append(buf, make([]byte, len(data)+Overhead)...)
	copy(buf[start+HeaderBytes:], data)
	return buf[:start+t.seal(buf[start:], len(data), kind)]
}
