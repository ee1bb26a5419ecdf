package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"unicode"

	"golang.org/x/net/dns/dnsmessage"
)

// query makes a query as a client would, by an encoder of others.
func query(t testing.TB, name string, kind dnsmessage.Type, edns *edns) []byte {
	t.Helper()
	b := dnsmessage.NewBuilder(nil, dnsmessage.Header{ID: 4711, RecursionDesired: true})
	must(t, b.StartQuestions(), b.Question(dnsmessage.Question{Name: dnsmessage.MustNewName(name), Type: kind, Class: dnsmessage.ClassINET}))
	if edns != nil {
		addOPT(t, &b, *edns)
	}
	msg, err := b.Finish()
	must(t, err)
	return msg
}

type edns struct {
	size    int
	do      bool
	options []dnsmessage.Option
}

func addOPT(t testing.TB, b *dnsmessage.Builder, e edns) {
	var h dnsmessage.ResourceHeader
	must(t, h.SetEDNS0(e.size, 0, e.do), b.StartAdditionals(), b.OPTResource(h, dnsmessage.OPTResource{Options: e.options}))
}

func must(t testing.TB, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// reply makes a server's answer to a query that was sent on.
func reply(t testing.TB, sent []byte, rcode dnsmessage.RCode, withOPT bool, fill func(*dnsmessage.Builder, dnsmessage.Name)) []byte {
	t.Helper()
	var p dnsmessage.Parser
	h, err := p.Start(sent)
	must(t, err)
	q, err := p.Question()
	must(t, err)
	b := dnsmessage.NewBuilder(nil, dnsmessage.Header{ID: h.ID, Response: true, Authoritative: true, RecursionDesired: true, RecursionAvailable: true, RCode: rcode})
	b.EnableCompression()
	must(t, b.StartQuestions(), b.Question(q), b.StartAnswers())
	if fill != nil {
		fill(&b, q.Name)
	}
	if withOPT {
		addOPT(t, &b, edns{size: 4096})
	}
	msg, err := b.Finish()
	must(t, err)
	return msg
}

func addresses(ttl uint32, n int) func(*dnsmessage.Builder, dnsmessage.Name) {
	return func(b *dnsmessage.Builder, name dnsmessage.Name) {
		for i := range n {
			h := dnsmessage.ResourceHeader{Name: name, Class: dnsmessage.ClassINET, TTL: ttl + uint32(i)}
			if err := b.AResource(h, dnsmessage.AResource{A: [4]byte{10, 0, byte(i >> 8), byte(i)}}); err != nil {
				panic(err)
			}
		}
	}
}

func parse(t testing.TB, b []byte) dnsmessage.Message {
	t.Helper()
	var m dnsmessage.Message
	if err := m.Unpack(b); err != nil {
		t.Fatalf("another decoder cannot read %x: %v", b, err)
	}
	return m
}

func TestQuery(t *testing.T) {
	cookie := dnsmessage.Option{Code: optionCookie, Data: make([]byte, 8)}
	subnet := dnsmessage.Option{Code: 8, Data: []byte{0, 1, 24, 0, 10, 0, 0}}
	for name, c := range map[string]struct {
		edns  *edns
		size  uint16
		plain bool
	}{
		"without EDNS":          {nil, 512, true},
		"EDNS":                  {&edns{size: 4096}, 4096, true},
		"too small":             {&edns{size: 10}, 512, true},
		"DNSSEC":                {&edns{size: 1400, do: true}, 1400, true},
		"a cookie":              {&edns{size: 1232, options: []dnsmessage.Option{cookie}}, 1232, true},
		"an answer for someone": {&edns{size: 1232, options: []dnsmessage.Option{cookie, subnet}}, 1232, false},
	} {
		t.Run(name, func(t *testing.T) {
			b := query(t, "Db.Shop.svc.cluster.local.", dnsmessage.TypeA, c.edns)
			q, err := ParseQuery(b)
			must(t, err)
			if q.Host() != "db.shop.svc.cluster.local" || q.Size != c.size || q.Plain != c.plain || q.EDNS != (c.edns != nil) || q.DNSSEC != (c.edns != nil && c.edns.do) {
				t.Errorf("read %+v of host %q", q, q.Host())
			}
			up := parse(t, q.Upstream(99))
			if up.ID != 99 || up.Questions[0].Name.String() != "Db.Shop.svc.cluster.local." || !up.RecursionDesired {
				t.Errorf("sent on %+v", up)
			}
			if (len(up.Additionals) == 1) != (c.edns != nil) {
				t.Errorf("EDNS sent on: %+v", up.Additionals)
			}
			if c.edns == nil {
				return
			}
			opt := up.Additionals[0]
			if kept := len(opt.Body.(*dnsmessage.OPTResource).Options); int(opt.Header.Class) > LargestUDP || opt.Header.DNSSECAllowed() != c.edns.do || (kept > 0) == c.plain {
				t.Errorf("EDNS sent on: %+v with %d options", opt.Header, kept)
			}
		})
	}
}

func TestMalformedQueries(t *testing.T) {
	good := query(t, "a.example.", dnsmessage.TypeA, &edns{size: 1232})
	change := func(at int, to byte) []byte {
		b := bytes.Clone(good)
		b[at] = to
		return b
	}
	for name, c := range map[string]struct {
		b    []byte
		want error
	}{
		"nothing":            {nil, ErrNoQuery},
		"short":              {good[:11], ErrNoQuery},
		"a response":         {change(2, 0x80), ErrNoQuery},
		"cut off":            {good[:len(good)-1], ErrMalformed},
		"trailing bytes":     {append(bytes.Clone(good), 'x'), ErrMalformed},
		"two questions":      {change(5, 2), ErrMalformed},
		"no question":        {change(5, 0), ErrMalformed},
		"a pointer":          {change(12, 0xc0), ErrMalformed},
		"a long label":       {change(12, 64), ErrMalformed},
		"many records":       {change(10, 0xff), ErrMalformed},
		"a name without end": {append(append(bytes.Clone(good[:12]), bytes.Repeat([]byte{1, 'a'}, 200)...), 0, 0, 1, 0, 1), ErrMalformed},
	} {
		if _, err := ParseQuery(c.b); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	if got := parse(t, FormatFailure(good)); got.RCode != dnsmessage.RCodeFormatError || got.ID != 4711 || !got.Response {
		t.Errorf("answered %+v", got)
	}
}

func TestResponse(t *testing.T) {
	asked, err := ParseQuery(query(t, "WWW.example.", dnsmessage.TypeA, &edns{size: 4096}))
	must(t, err)
	b := reply(t, asked.Upstream(7), dnsmessage.RCodeSuccess, true, addresses(60, 3))
	r, err := ParseResponse(b, asked, 7)
	must(t, err)
	if !r.Lasting || r.Negative || r.TTL != 60 || r.Rcode != NoError {
		t.Errorf("read %+v", r)
	}
	// Another client, with other letters and without EDNS, 10 s later.
	other, err := ParseQuery(query(t, "www.EXAMPLE.", dnsmessage.TypeA, nil))
	must(t, err)
	m := parse(t, r.For(other, 512, 10, false))
	if m.ID != 4711 || m.Questions[0].Name.String() != "www.EXAMPLE." || len(m.Answers) != 3 || m.Answers[2].Header.TTL != 52 || len(m.Additionals) != 0 || m.Authoritative {
		t.Errorf("given %+v", m)
	}
	m = parse(t, r.For(asked, 4096, 600, true))
	if len(m.Additionals) != 1 || m.Answers[0].Header.TTL != Stale || m.Answers[0].Header.Name.String() != "WWW.example." {
		t.Errorf("given as stale %+v", m)
	}
	if o := m.Additionals[0].Body.(*dnsmessage.OPTResource).Options; len(o) != 1 || o[0].Code != optionError || !bytes.Equal(o[0].Data, []byte{0, StaleAnswer}) {
		t.Errorf("without the word that it is stale: %+v", o)
	}
	if m = parse(t, r.For(other, 60, 0, false)); !m.Truncated || len(m.Answers) != 0 {
		t.Errorf("larger than the limit: %+v", m)
	}
	for name, change := range map[string]func([]byte){
		"another ID":       func(b []byte) { b[1] = 8 },
		"a query":          func(b []byte) { b[2] &^= 0x80 },
		"another question": func(b []byte) { b[13] = 'x' },
		"another type":     func(b []byte) { b[12+13+1] = 28 },
		"an update":        func(b []byte) { b[2] |= 5 << 3 },
	} {
		forged := bytes.Clone(b)
		change(forged)
		if _, err := ParseResponse(forged, asked, 7); err == nil {
			t.Errorf("%s was taken for the answer", name)
		}
	}
}

// TestWhereOPTMayBe: anywhere in the additional section, and once (RFC 6891, section 6.1.1).
func TestWhereOPTMayBe(t *testing.T) {
	asked, err := ParseQuery(query(t, "_db._tcp.example.", dnsmessage.TypeSRV, &edns{size: 4096}))
	must(t, err)
	bare, err := ParseQuery(query(t, "_db._tcp.example.", dnsmessage.TypeSRV, nil))
	must(t, err)
	one, other := dnsmessage.MustNewName("one.example."), dnsmessage.MustNewName("other.test.")
	header := func(name dnsmessage.Name) dnsmessage.ResourceHeader {
		return dnsmessage.ResourceHeader{Name: name, Class: dnsmessage.ClassINET, TTL: 60}
	}
	answer := func(additional func(*dnsmessage.Builder)) []byte {
		return reply(t, asked.Upstream(7), dnsmessage.RCodeSuccess, false, func(b *dnsmessage.Builder, name dnsmessage.Name) {
			must(t, b.SRVResource(header(name), dnsmessage.SRVResource{Target: one}), b.StartAdditionals())
			additional(b)
		})
	}
	opt := func(b *dnsmessage.Builder) {
		var h dnsmessage.ResourceHeader
		must(t, h.SetEDNS0(4096, dnsmessage.RCode(16), false), b.OPTResource(h, dnsmessage.OPTResource{Options: []dnsmessage.Option{{Code: optionPadding, Data: make([]byte, 9)}}}))
	}
	a := func(b *dnsmessage.Builder, name dnsmessage.Name) {
		must(t, b.AResource(header(name), dnsmessage.AResource{A: [4]byte{10, 0, 0, 1}}))
	}
	aaaa := func(b *dnsmessage.Builder, name dnsmessage.Name) {
		must(t, b.AAAAResource(header(name), dnsmessage.AAAAResource{AAAA: [16]byte{15: 1}}))
	}
	text := func(b *dnsmessage.Builder) {
		must(t, b.TXTResource(header(one), dnsmessage.TXTResource{TXT: []string{"x"}}))
	}
	for name, c := range map[string]struct {
		fill func(*dnsmessage.Builder)
		want string
	}{
		"last":            {func(b *dnsmessage.Builder) { a(b, one); opt(b) }, "one.example."},
		"first":           {func(b *dnsmessage.Builder) { opt(b); a(b, one); aaaa(b, one) }, "one.example. one.example."},
		"in the middle":   {func(b *dnsmessage.Builder) { a(b, one); opt(b); a(b, other); aaaa(b, other) }, "one.example. other.test. other.test."}, // a pointer behind it
		"before unmoved":  {func(b *dnsmessage.Builder) { a(b, one); opt(b); a(b, other); text(b); a(b, one) }, "one.example. other.test."},
		"twice":           {func(b *dnsmessage.Builder) { opt(b); opt(b) }, "malformed"},
		"twice and apart": {func(b *dnsmessage.Builder) { opt(b); a(b, one); opt(b) }, "malformed"},
	} {
		r, err := ParseResponse(answer(c.fill), asked, 7)
		if c.want == "malformed" {
			if !errors.Is(err, ErrMalformed) {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		must(t, err)
		if r.Rcode != 16 || r.TTL != 60 {
			t.Errorf("%s: code %d, %d s", name, r.Rcode, r.TTL)
		}
		m := parse(t, r.For(bare, 512, 10, false))
		var names []string
		for _, additional := range m.Additionals {
			names = append(names, additional.Header.Name.String())
			if additional.Header.TTL != 50 {
				t.Errorf("%s: %+v", name, additional.Header)
			}
		}
		if got := strings.Join(names, " "); got != c.want || len(m.Answers) != 1 {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
		if m := parse(t, r.For(asked, 512, 0, false)); m.Additionals[len(m.Additionals)-1].Header.Type != dnsmessage.TypeOPT {
			t.Errorf("%s: the client's own OPT is not there: %+v", name, m)
		}
	}
}

func TestLasting(t *testing.T) {
	soa := func(ttl, minimum uint32) func(*dnsmessage.Builder, dnsmessage.Name) {
		return func(b *dnsmessage.Builder, name dnsmessage.Name) {
			must(t, b.StartAuthorities(), b.SOAResource(dnsmessage.ResourceHeader{Name: name, Class: dnsmessage.ClassINET, TTL: ttl},
				dnsmessage.SOAResource{NS: name, MBox: name, MinTTL: minimum}))
		}
	}
	for name, c := range map[string]struct {
		rcode             dnsmessage.RCode
		fill              func(*dnsmessage.Builder, dnsmessage.Name)
		ttl               uint32
		lasting, negative bool
	}{
		"answers":                    {dnsmessage.RCodeSuccess, addresses(30, 2), 30, true, false},
		"answers for one time":       {dnsmessage.RCodeSuccess, addresses(0, 2), 0, true, false},
		"no such name, for one time": {dnsmessage.RCodeNameError, soa(3600, 0), 0, false, true},
		"no such name":               {dnsmessage.RCodeNameError, soa(3600, 15), 15, true, true},
		"no such type":               {dnsmessage.RCodeSuccess, soa(20, 100), 20, true, true},
		"no such name, without why":  {dnsmessage.RCodeNameError, nil, 1<<31 - 1, false, true},
		"a failure":                  {dnsmessage.RCodeServerFailure, addresses(30, 1), 30, false, false},
		"a TTL that is out of range": {dnsmessage.RCodeSuccess, addresses(1<<31, 1), 0, true, false},
		"another name": {dnsmessage.RCodeSuccess, func(b *dnsmessage.Builder, name dnsmessage.Name) {
			must(t, b.CNAMEResource(dnsmessage.ResourceHeader{Name: name, Class: dnsmessage.ClassINET, TTL: 5}, dnsmessage.CNAMEResource{CNAME: name}))
			soa(100, 100)(b, name)
		}, 5, true, true},
	} {
		q, err := ParseQuery(query(t, "a.example.", dnsmessage.TypeA, nil))
		must(t, err)
		r, err := ParseResponse(reply(t, q.Upstream(1), c.rcode, false, c.fill), q, 1)
		must(t, err)
		if r.TTL != c.ttl || r.Lasting != c.lasting || r.Negative != c.negative {
			t.Errorf("%s: TTL %d, lasting %v, negative %v", name, r.TTL, r.Lasting, r.Negative)
		}
	}
}

func TestAddresses(t *testing.T) {
	addrs := []netip.Addr{netip.MustParseAddr("10.96.0.1"), netip.MustParseAddr("fd96::1")}
	for kind, want := range map[dnsmessage.Type]string{dnsmessage.TypeA: "10.96.0.1", dnsmessage.TypeAAAA: "fd96::1"} {
		q, err := ParseQuery(query(t, "db.shop.svc.cluster.local.", kind, &edns{size: 1232}))
		must(t, err)
		m := parse(t, q.Addresses(addrs, 5, "cluster.local", 1232))
		if len(m.Answers) != 1 || m.Answers[0].Header.TTL != 5 || !m.Authoritative || m.RCode != 0 || len(m.Additionals) != 1 {
			t.Fatalf("%s: %+v", kind, m)
		}
		var got netip.Addr
		switch b := m.Answers[0].Body.(type) {
		case *dnsmessage.AResource:
			got = netip.AddrFrom4(b.A)
		case *dnsmessage.AAAAResource:
			got = netip.AddrFrom16(b.AAAA)
		}
		if got.String() != want {
			t.Errorf("%s: %s, want %s", kind, got, want)
		}
		m = parse(t, q.Addresses(nil, 5, "cluster.local", 1232))
		if len(m.Answers) != 0 || m.RCode != 0 || len(m.Authorities) != 1 || m.Authorities[0].Body.(*dnsmessage.SOAResource).MinTTL != 5 {
			t.Errorf("%s, without any: %+v", kind, m)
		}
	}
}

// FuzzQuery reads anything as a query, and wants what is made of it to be messages
// that can be read again, here and by another decoder.
func FuzzQuery(f *testing.F) {
	for _, b := range [][]byte{
		query(f, "a.example.", dnsmessage.TypeA, nil), query(f, "B.svc.cluster.local.", dnsmessage.TypeAAAA, &edns{size: 4096, do: true}),
		query(f, ".", dnsmessage.TypeNS, &edns{size: 1, options: []dnsmessage.Option{{Code: 8, Data: []byte{1}}}}),
		query(f, "zone.example.", dnsmessage.TypeAXFR, nil),
	} {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		q, err := ParseQuery(bytes.Clone(b))
		if err != nil {
			FormatFailure(b)
			return
		}
		if text := q.Text(); len(text) > maxName+len(" TYPE65535") || strings.ContainsFunc(text, unicode.IsControl) {
			t.Fatalf("for a person it is %q", text)
		}
		up := q.Upstream(1)
		again, err := ParseQuery(up)
		if err != nil || again.Name != q.Name || again.Type != q.Type || q.Plain && !again.Plain {
			t.Fatalf("sent on as %x: %+v, %v", up, again, err)
		}
		answers := [][]byte{q.Failure(ServerFailure, Unreachable), q.truncated()}
		if q.Plain {
			answers = append(answers, q.Addresses([]netip.Addr{netip.MustParseAddr("10.0.0.1")}, 5, "cluster.local", Largest))
		}
		for _, a := range answers {
			if _, err := scan(a); err != nil {
				t.Fatalf("answered %x: %v", a, err)
			}
		}
	})
}

// FuzzResponse reads anything as the answer to one of two queries, and wants what is
// given to clients to be messages within their limits.
func FuzzResponse(f *testing.F) {
	plain, err := ParseQuery(query(f, "a.example.", dnsmessage.TypeA, &edns{size: 4096}))
	must(f, err)
	opaque, err := ParseQuery(query(f, "a.example.", dnsmessage.TypeAXFR, nil))
	must(f, err)
	bare, err := ParseQuery(query(f, "A.example.", dnsmessage.TypeA, nil))
	must(f, err)
	f.Add(reply(f, plain.Upstream(0), dnsmessage.RCodeSuccess, true, addresses(60, 3)))
	f.Add(reply(f, plain.Upstream(0), dnsmessage.RCodeNameError, false, nil))
	f.Add(reply(f, plain.Upstream(0), dnsmessage.RCodeSuccess, false, func(b *dnsmessage.Builder, name dnsmessage.Name) {
		addOPT(f, b, edns{size: 4096})
		addresses(60, 2)(b, name) // behind it
	}))
	f.Add(reply(f, opaque.Upstream(0), dnsmessage.RCodeSuccess, true, addresses(60, 300)))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 2 {
			binary.BigEndian.PutUint16(b, 0)
		}
		for _, q := range []*Query{plain, opaque} {
			r, err := ParseResponse(bytes.Clone(b), q, 0)
			if err != nil {
				continue
			}
			clients := []*Query{q}
			if q.Plain {
				clients = append(clients, bare)
			}
			for _, c := range clients {
				for _, limit := range []int{512, Largest} {
					got := r.For(c, limit, 1, limit == 512)
					if _, err := scan(got); err != nil || len(got) > limit {
						t.Fatalf("given %x of %d bytes: %v", got, len(got), err)
					}
				}
			}
		}
	})
}
