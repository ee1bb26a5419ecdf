package http1

import (
	"github.com/heddle-mesh/heddle/waypoint/http1/grammar"
	"github.com/heddle-mesh/heddle/waypoint/http1/names"
	"github.com/heddle-mesh/heddle/waypoint/reason"
)

// said is what the fields of a head say together.
type said struct {
	options
	upgrades, keys    int
	webSocket, expect bool
}

// readOwned reads the fields that have a meaning for us.
func (h *Head) readOwned(s *said, response bool) Reason {
	for i := range h.Fields {
		if f := &h.Fields[i]; f.kind != names.Other {
			if r := h.readOne(f, s, response); r != 0 {
				return r
			}
		}
	}
	switch {
	case h.Body == Chunked && h.Length >= 0:
		return reason.LengthAndCoding // RFC 9112 section 6.3
	case h.Body == Chunked && h.Minor == 0:
		return reason.CodingInOldVersion // section 6.1
	}
	h.Close = s.close || h.Minor == 0 && !s.keep // section 9.3
	return 0
}

func (h *Head) readOne(f *Field, s *said, response bool) Reason {
	switch f.kind {
	case names.ContentLength:
		return h.readLength(f.Value)
	case names.TransferEncoding:
		return h.readCoding(f.Value)
	case names.Connection:
		return h.readConnection(f.Value, &s.options)
	case names.Trailer:
		return checkTrailer(f.Value)
	case names.Upgrade:
		s.upgrades++
		s.webSocket = grammar.FoldEqual(f.Value, "websocket")
	case names.WebSocketKey, names.WebSocketAccept:
		if response == (f.kind == names.WebSocketAccept) {
			s.keys++
			h.websocket = f.Value
		}
	}
	if response {
		return 0
	}
	switch f.kind {
	case names.Host:
		if h.Host != nil {
			return reason.HostTwice
		}
		if ok, _ := grammar.CheckHost(f.Value); !ok {
			return reason.BadHost
		}
		h.Host = f.Value
	case names.TE:
		h.Trailers = h.Trailers || grammar.ListHas(f.Value, "trailers")
	case names.Expect:
		if !grammar.FoldEqual(f.Value, "100-continue") {
			return reason.UnknownExpectation
		}
		s.expect = true
	}
	return 0
}

// judgeRequest says what a request means, and how its end is found.
func (p *Parser) judgeRequest() Reason {
	h, s := &p.Head, said{}
	if r := h.readOwned(&s, false); r != 0 {
		return r
	}
	if h.Host == nil && h.Minor == 1 {
		return reason.HostMissing // RFC 9112 section 3.2
	}
	if r := h.readTarget(p.config.Secure); r != 0 {
		return r
	}
	if h.Host == nil {
		if h.Host = []byte(p.config.DefaultHost); len(h.Host) == 0 {
			return reason.HostMissing
		}
	}
	content := h.Body == Chunked || h.Length > 0
	switch method := string(h.Method); {
	case method == "TRACE":
		return reason.TraceRefused
	case method == "CONNECT" && content:
		return reason.BodyNotAllowed // RFC 9110 section 9.3.6
	case h.Body != Chunked && h.Length >= 0 && method != "CONNECT":
		h.Body = Length
	}
	h.Continue = s.expect && h.Minor == 1 && content // section 10.1.1
	// An Upgrade that is not asked for in the way of section 7.8 is no Upgrade.
	if s.webSocket && s.upgrades == 1 && s.upgrade && h.Minor == 1 {
		if string(h.Method) != "GET" || s.keys != 1 || len(h.websocket) != 24 {
			return reason.BadUpgrade // RFC 6455 section 4.1
		}
		if content {
			return reason.BodyNotAllowed
		}
		h.Upgrade = true
	}
	if limit := p.config.BodyBytes; limit > 0 && h.Length > limit {
		return reason.BodyTooLarge
	}
	p.follow()
	return 0
}

// follow goes to what follows the head.
func (p *Parser) follow() {
	switch p.Head.Body {
	case NoBody:
		p.state = ended
	case Length:
		p.state, p.left = inLength, p.Head.Length
	case Chunked:
		p.state = inChunkSize
	case UntilClose:
		p.state = inUntilClose
	}
}

// judgeResponse says what a response means, and how its end is found (RFC 9112
// section 6.3).
func (p *Parser) judgeResponse() Reason {
	h, s := &p.Head, said{}
	if r := h.readOwned(&s, true); r != 0 {
		return r
	}
	if h.Status < 200 || h.Status == 204 {
		if h.Body == Chunked || h.Length > 0 {
			return reason.BodyNotAllowed // section 6.1, RFC 9110 section 8.6
		}
		h.Length = -1
	}
	switch {
	case h.Interim():
		if p.count++; p.count > p.config.Interim {
			return reason.TooManyInterim
		}
		return 0 // at the next head
	case h.Status == 101:
		if p.asked.Accept == "" {
			return reason.UpgradeNotAsked
		}
		if !s.webSocket || s.upgrades != 1 || !s.upgrade || h.Minor == 0 || s.keys != 1 || string(h.websocket) != p.asked.Accept {
			return reason.BadUpgrade
		}
		h.Upgrade, p.state = true, inTunnel
		return 0
	case p.asked.Connect && h.Status < 300:
		h.Body, h.Length, p.state = NoBody, -1, inTunnel // RFC 9110 section 9.3.6
		return 0
	case p.asked.Head || h.Status == 204 || h.Status == 304:
		h.Body = NoBody
	case h.Body == Chunked:
	case h.Length >= 0:
		h.Body = Length
	default:
		h.Body, h.Close = UntilClose, true
	}
	p.follow()
	return 0
}
