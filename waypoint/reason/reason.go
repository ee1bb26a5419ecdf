// Package reason says why HTTP is refused, in either version: one closed set of names for responses,
// logs and metrics. It knows nothing of how a message is read.
package reason

import (
	"slices"
	"strconv"
)

// Reason is why a message, a stream or a connection is refused. The set is closed.
type Reason uint8

// The reasons, by what is wrong.
const (
	BadRequestLine Reason = iota + 1
	MethodTooLong
	TargetTooLong
	BadTarget
	BadVersion
	UnsupportedVersion
	TraceRefused
	EmptyLines
	BareLF
	BareCR
	ControlByte
	BadFieldLine
	BadFieldName
	SpaceBeforeColon
	ObsFold
	AliasedField
	HeadTooLarge
	TooManyFields
	HostMissing
	HostTwice
	BadHost
	HostDiffers
	BadContentLength
	ContentLengthTwice
	LengthAndCoding
	BadTransferCoding
	UnknownCoding
	CodingInOldVersion
	BodyNotAllowed
	BodyTooLarge
	BadConnection
	ProtectedOption
	UnknownExpectation
	BadUpgrade
	BadChunkSize
	BadChunkExtension
	ExtensionsTooLarge
	BadChunkEnd
	BadTrailer
	TrailersTooLarge
	Truncated
	BadStatusLine
	TooManyInterim
	UpgradeNotAsked
	Unsolicited

	// HTTP/2: what a message says (RFC 9113 section 8).
	BadPseudo
	UpperCaseName
	ConnectionField
	BadScheme
	LengthDiffers
	SecondHead

	// HTTP/2: what ends a stream.
	StreamClosed
	TooManyStreams
	WindowExceeded
	WindowTooLarge
	ZeroUpdate
	PeerReset
	PeerGone

	// HTTP/2: what ends a connection.
	BadPreface
	SettingsMissing
	SettingsTimeout
	BadSetting
	FrameTooLarge
	BadFrameSize
	BadStream
	BadPadding
	HeadInterrupted
	BadCompression
	PushRefused
	SelfDependency

	// HTTP/2: what there is too much of.
	HeadFlood
	RapidReset
	MadeYouReset
	RefusedFlood
	SettingsFlood
	PingFlood
	EmptyFlood
	UpdateFlood
	IdleFlood
	ClosedFlood
	last = ClosedFlood
)

var reasons = [...]struct {
	name   string
	status int
}{
	BadRequestLine:     {"bad_request_line", 400},
	MethodTooLong:      {"method_too_long", 501},
	TargetTooLong:      {"target_too_long", 414},
	BadTarget:          {"bad_target", 400},
	BadVersion:         {"bad_version", 400},
	UnsupportedVersion: {"unsupported_version", 505},
	TraceRefused:       {"trace_refused", 501},
	EmptyLines:         {"empty_lines", 400},
	BareLF:             {"bare_lf", 400},
	BareCR:             {"bare_cr", 400},
	ControlByte:        {"control_byte", 400},
	BadFieldLine:       {"bad_field_line", 400},
	BadFieldName:       {"bad_field_name", 400},
	SpaceBeforeColon:   {"space_before_colon", 400},
	ObsFold:            {"obs_fold", 400},
	AliasedField:       {"aliased_field", 400},
	HeadTooLarge:       {"head_too_large", 431},
	TooManyFields:      {"too_many_fields", 431},
	HostMissing:        {"host_missing", 400},
	HostTwice:          {"host_twice", 400},
	BadHost:            {"bad_host", 400},
	HostDiffers:        {"host_differs", 400},
	BadContentLength:   {"bad_content_length", 400},
	ContentLengthTwice: {"content_length_twice", 400},
	LengthAndCoding:    {"length_and_coding", 400},
	BadTransferCoding:  {"bad_transfer_coding", 400},
	UnknownCoding:      {"unknown_coding", 501},
	CodingInOldVersion: {"coding_in_old_version", 400},
	BodyNotAllowed:     {"body_not_allowed", 400},
	BodyTooLarge:       {"body_too_large", 413},
	BadConnection:      {"bad_connection", 400},
	ProtectedOption:    {"protected_option", 400},
	UnknownExpectation: {"unknown_expectation", 417},
	BadUpgrade:         {"bad_upgrade", 400},
	BadChunkSize:       {"bad_chunk_size", 400},
	BadChunkExtension:  {"bad_chunk_extension", 400},
	ExtensionsTooLarge: {"extensions_too_large", 413},
	BadChunkEnd:        {"bad_chunk_end", 400},
	BadTrailer:         {"bad_trailer", 400},
	TrailersTooLarge:   {"trailers_too_large", 431},
	Truncated:          {"truncated", 400},
	BadStatusLine:      {"bad_status_line", 502},
	TooManyInterim:     {"too_many_interim", 502},
	UpgradeNotAsked:    {"upgrade_not_asked", 502},
	Unsolicited:        {"unsolicited", 502},
	BadPseudo:          {"bad_pseudo_field", 400},
	UpperCaseName:      {"upper_case_name", 400},
	ConnectionField:    {"connection_field", 400},
	BadScheme:          {"bad_scheme", 400},
	LengthDiffers:      {"length_differs", 400},
	SecondHead:         {"second_head", 400},
	StreamClosed:       {"stream_closed", 0},
	TooManyStreams:     {"too_many_streams", 0},
	WindowExceeded:     {"window_exceeded", 0},
	WindowTooLarge:     {"window_too_large", 0},
	ZeroUpdate:         {"zero_window_update", 0},
	PeerReset:          {"reset_by_peer", 0},
	PeerGone:           {"peer_gone_away", 0},
	BadPreface:         {"bad_preface", 0},
	SettingsMissing:    {"settings_missing", 0},
	SettingsTimeout:    {"settings_timeout", 0},
	BadSetting:         {"bad_setting", 0},
	FrameTooLarge:      {"frame_too_large", 0},
	BadFrameSize:       {"bad_frame_size", 0},
	BadStream:          {"bad_stream", 0},
	BadPadding:         {"bad_padding", 0},
	HeadInterrupted:    {"head_interrupted", 0},
	BadCompression:     {"bad_compression", 0},
	PushRefused:        {"push_refused", 0},
	SelfDependency:     {"self_dependency", 0},
	HeadFlood:          {"head_flood", 0},
	RapidReset:         {"rapid_reset", 0},
	MadeYouReset:       {"made_you_reset", 0},
	RefusedFlood:       {"refused_stream_flood", 0},
	SettingsFlood:      {"settings_flood", 0},
	PingFlood:          {"ping_flood", 0},
	EmptyFlood:         {"empty_frame_flood", 0},
	UpdateFlood:        {"window_update_flood", 0},
	IdleFlood:          {"idle_frame_flood", 0},
	ClosedFlood:        {"closed_stream_flood", 0},
}

// All are all of them.
func All() (all []Reason) {
	for r := BadRequestLine; r <= last; r++ {
		all = append(all, r)
	}
	return all
}

// String is the reason's name in logs, metrics and x-heddle-reason.
func (r Reason) String() string {
	if int(r) < len(reasons) && reasons[r].name != "" {
		return reasons[r].name
	}
	return "reason_" + strconv.Itoa(int(r))
}

// Status is what a request is answered that is refused for it; 0 when there is nothing to answer.
func (r Reason) Status() int { return reasons[r].status }

// HTTP1 are those that HTTP/1.1 is refused for.
func HTTP1() []Reason { return All()[:slices.Index(All(), Unsolicited)+1] }
