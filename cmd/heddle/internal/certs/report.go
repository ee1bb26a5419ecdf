package certs

import (
	"cmp"
	"encoding/hex"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/show"
)

// Report is what expires when. Times are RFC 3339 in UTC, "" when there is none;
// serials and digests are hexadecimal.
type Report struct {
	OK          bool   `json:"ok"`
	TrustDomain string `json:"trustDomain"`
	// Problems are what is not well, each with its remedy.
	Problems  []string      `json:"problems"`
	Authority []Certificate `json:"authority"`
	Nodes     []Node        `json:"nodes"`
	// Federation is what the operator knows of other trust domains.
	Federation []Federated `json:"federation"`
	// JWTKeys sign JWT-SVIDs; JWTWithheld is why there are none.
	JWTKeys     []JWTKey `json:"jwtKeys"`
	JWTWithheld string   `json:"jwtWithheld,omitempty"`
	Rotation    Rotation `json:"rotation"`
}

// JWTKey is a key of JWT-SVIDs.
type JWTKey struct {
	// ID is the "kid" of its tokens.
	ID          string `json:"id"`
	Key         string `json:"key"`
	PostQuantum bool   `json:"postQuantum"`
	// State is "signs", "next", which signs soon, or "retired", whose tokens may live. Until is
	// when it signs no more, begins to, or is no longer believed.
	State string `json:"state"`
	Made  string `json:"made"`
	Until string `json:"until"`
	until time.Duration
	late  bool
}

// keyLate is after which time a key that is to be replaced should have been.
const keyLate = 24 * time.Hour

// jwtKeys adds the keys of JWT-SVIDs.
func (r *Report) jwtKeys(a *meshpb.CertificatesResponse, now time.Time) {
	r.JWTKeys, r.JWTWithheld = []JWTKey{}, a.GetJwtWithheld()
	if problem := a.GetJwtProblem(); problem != "" {
		r.bad("the newest keys of JWT-SVIDs are not in use: %s; remedy: restore the entry from a backup, or take it out: another key is made then, and tokens of those before are no longer valid", problem)
	}
	for _, k := range a.GetJwtKeys() {
		out := JWTKey{ID: k.GetId(), Key: k.GetKey(), PostQuantum: postQuantum(k.GetKey()), State: k.GetState(), Made: show.Moment(k.GetMadeNs()), Until: show.Moment(k.GetUntilNs())}
		out.until = time.Unix(0, k.GetUntilNs()).Sub(now)
		if out.late = out.until < -keyLate; out.late && out.State == "signs" {
			r.bad("key %s of JWT-SVIDs was to be replaced %s, and signs on; remedy: the log of the operator that leads has the reason", short(out.ID), in(out.until))
		}
		r.JWTKeys = append(r.JWTKeys, out)
	}
}

// Federated is another trust domain.
type Federated struct {
	TrustDomain string `json:"trustDomain"`
	Endpoint    string `json:"endpoint"`
	Profile     string `json:"profile"`
	// Refreshed is when its endpoint gave a bundle last, Next when it is asked again.
	Refreshed string        `json:"refreshed,omitempty"`
	Next      string        `json:"next,omitempty"`
	Sequence  uint64        `json:"sequence,omitempty"`
	JWTKeys   uint32        `json:"jwtKeys"`
	Error     string        `json:"error,omitempty"`
	Roots     []Certificate `json:"roots"`
}

// Certificate is one certificate.
type Certificate struct {
	// Kind is "root", "intermediate", "svid" or "federated", a root of another trust domain.
	Kind     string `json:"kind"`
	Identity string `json:"identity,omitempty"`
	Subject  string `json:"subject,omitempty"`
	Serial   string `json:"serial"`
	SHA256   string `json:"sha256,omitempty"`
	// Issuer is the serial of the certificate of the authority that signed it.
	Issuer string `json:"issuer,omitempty"`
	Key    string `json:"key"`
	// PostQuantum says whether its signatures withstand a quantum computer.
	PostQuantum      bool   `json:"postQuantum"`
	Signs            bool   `json:"signs,omitempty"`
	NotBefore        string `json:"notBefore"`
	NotAfter         string `json:"notAfter"`
	ExpiresInSeconds int64  `json:"expiresInSeconds"`
	Renewal          string `json:"renewal,omitempty"`
	Error            string `json:"error,omitempty"`
	expires          time.Duration
	renews           time.Duration
	soon             bool
}

// Node is what one node's agent reports.
type Node struct {
	Node         string        `json:"node"`
	Connected    bool          `json:"connected"`
	Reported     string        `json:"reported,omitempty"`
	Roots        int           `json:"roots"`
	LeftOut      uint32        `json:"leftOut,omitempty"`
	Certificates []Certificate `json:"certificates"`
}

// Rotation is how far a rotation is; Kind is "" when there is none.
type Rotation struct {
	Kind     string   `json:"kind"`
	Stage    string   `json:"stage,omitempty"`
	Aborting bool     `json:"aborting,omitempty"`
	Started  string   `json:"started,omitempty"`
	Since    string   `json:"since,omitempty"`
	Nodes    uint32   `json:"nodes"`
	Done     uint32   `json:"done"`
	Waiting  []Wait   `json:"waiting"`
	Without  []string `json:"without,omitempty"`
	// Ended is how the last one ended, "completed" or "aborted", and EndedAt when.
	Ended   string `json:"ended,omitempty"`
	EndedAt string `json:"endedAt,omitempty"`
}

// Wait is who holds a rotation.
type Wait struct {
	Part     string `json:"part"`
	Name     string `json:"name"`
	Reason   string `json:"reason"`
	Forcible bool   `json:"forcible"`
}

// postQuantum goes by the kind of key: FIPS 204 and 205 name those that do.
func postQuantum(key string) bool {
	return strings.HasPrefix(key, "ML-DSA") || strings.HasPrefix(key, "SLH-DSA")
}

func rotationOf(s *meshpb.RotationState) Rotation {
	r := Rotation{Kind: s.GetKind(), Stage: s.GetStage(), Aborting: s.GetAborting(), Started: show.Moment(s.GetStartedNs()), Since: show.Moment(s.GetSinceNs()),
		Nodes: s.GetNodes(), Done: s.GetDone(), Waiting: []Wait{}, Without: s.GetWithout(), Ended: s.GetEnded(), EndedAt: show.Moment(s.GetEndedNs())}
	for _, w := range s.GetWaiting() {
		r.Waiting = append(r.Waiting, Wait{w.GetPart(), w.GetName(), w.GetReason(), w.GetForcible()})
	}
	return r
}

// Of says what an operator's answer means at a moment.
func Of(a *meshpb.CertificatesResponse, now time.Time, within time.Duration) *Report {
	r := &Report{TrustDomain: a.GetTrustDomain(), Problems: []string{}, Authority: []Certificate{}, Nodes: []Node{}, Federation: []Federated{}, Rotation: rotationOf(a.GetRotation())}
	switch {
	case a.GetProblem() != "" && a.GetIssuer() != "":
		r.bad("the CA is not what %s has: %s", a.GetIssuer(), a.GetProblem())
	case a.GetProblem() != "":
		r.bad("the authority's newest keys are not in use: %s", a.GetProblem())
	}
	serials := map[string]string{}
	for _, c := range a.GetAuthority() {
		out := Certificate{Kind: c.GetKind(), Subject: c.GetSubject(), Serial: c.GetSerial(), SHA256: hex.EncodeToString(c.GetSha256()),
			Key: c.GetKey(), PostQuantum: postQuantum(c.GetKey()), Signs: c.GetSigns()}
		out.times(now, c.GetNotBeforeNs(), c.GetNotAfterNs())
		serials[string(c.GetSha256())] = c.GetSerial()
		out.soon = soon(a, c, now, within)
		which := ""
		if c.GetSigns() {
			which = ", which signs,"
		}
		switch {
		case !out.soon:
		case a.GetIssuer() != "":
			r.bad("%s %s, which signs, expires %s, and %s has given no other; remedy: the operator's log, and %s's, say why", c.GetKind(), c.GetSerial(), in(out.expires), a.GetIssuer(), a.GetIssuer())
		default:
			r.bad("%s %s%s expires %s; remedy: %s", c.GetKind(), c.GetSerial(), which, in(out.expires), remedy(a, c, now, within))
		}
		r.Authority = append(r.Authority, out)
	}
	for _, n := range a.GetNodes() {
		r.node(n, serials, now)
	}
	for _, f := range a.GetFederation() {
		r.federated(f, now)
	}
	r.jwtKeys(a, now)
	r.OK = len(r.Problems) == 0
	return r
}

// federated adds another trust domain. Its roots are for its own people to replace in time, and
// here are a problem when its last one ends and it is not asked with success.
func (r *Report) federated(f *meshpb.FederatedBundle, now time.Time) {
	out := Federated{TrustDomain: f.GetTrustDomain(), Endpoint: f.GetEndpoint(), Profile: f.GetProfile(), Refreshed: show.Moment(f.GetRefreshedNs()),
		Next: show.Moment(f.GetNextNs()), Sequence: f.GetSequence(), JWTKeys: f.GetJwtKeys(), Error: f.GetError(), Roots: []Certificate{}}
	var last time.Duration
	for _, c := range f.GetRoots() {
		cert := Certificate{Kind: "federated", Subject: c.GetSubject(), Serial: c.GetSerial(), SHA256: hex.EncodeToString(c.GetSha256()), Key: c.GetKey(), PostQuantum: postQuantum(c.GetKey())}
		cert.times(now, c.GetNotBeforeNs(), c.GetNotAfterNs())
		last = max(last, cert.expires)
		out.Roots = append(out.Roots, cert)
	}
	switch {
	case out.Error != "" && len(out.Roots) > 0:
		r.bad("trust domain %s: its bundle is not refreshed: %s; the last good one is believed, and its last root expires %s", out.TrustDomain, out.Error, in(last))
	case out.Error != "":
		r.bad("trust domain %s: there is no bundle, and nobody of it is believed: %s", out.TrustDomain, out.Error)
	case len(out.Roots) > 0 && last <= 0:
		r.bad("trust domain %s: all of its roots have expired, and nobody of it is believed; remedy: its own people have to replace them", out.TrustDomain)
	}
	r.Federation = append(r.Federation, out)
}

func (r *Report) bad(format string, args ...any) {
	r.Problems = append(r.Problems, fmt.Sprintf(format, args...))
}

func (r *Report) node(n *meshpb.NodeCertificates, serials map[string]string, now time.Time) {
	out := Node{Node: n.GetNode(), Connected: n.GetConnected(), Reported: show.Moment(n.GetReportedNs()), Roots: len(n.GetReport().GetRoots()),
		LeftOut: n.GetReport().GetLeftOut(), Certificates: []Certificate{}}
	switch {
	case !n.GetConnected():
		r.bad("node %s: its agent is not connected; remedy: start it", n.GetNode())
	case n.GetReport() == nil:
		r.bad("node %s: its agent has not reported; remedy: if it stays so, upgrade it: it is of a version before", n.GetNode())
	}
	for _, c := range n.GetReport().GetCertificates() {
		cert := Certificate{Kind: "svid", Identity: c.GetIdentity(), Serial: c.GetSerial(), Issuer: cmp.Or(serials[string(c.GetIssuer())], hex.EncodeToString(c.GetIssuer())),
			Key: c.GetKey(), PostQuantum: postQuantum(c.GetKey()), Renewal: show.Moment(c.GetRenewalNs()), Error: c.GetError()}
		cert.times(now, c.GetNotBeforeNs(), c.GetNotAfterNs())
		cert.renews = time.Unix(0, c.GetRenewalNs()).Sub(now)
		cert.soon = cert.expires < time.Duration(c.GetNotAfterNs()-c.GetNotBeforeNs())/4
		switch {
		case c.GetError() != "":
			r.bad("node %s: %s expires %s and cannot be renewed: %s", n.GetNode(), c.GetIdentity(), in(cert.expires), c.GetError())
		case cert.soon:
			r.bad("node %s: %s expires %s and is not renewed; remedy: `heddle check` says how its agent fares", n.GetNode(), c.GetIdentity(), in(cert.expires))
		}
		out.Certificates = append(out.Certificates, cert)
	}
	r.Nodes = append(r.Nodes, out)
}

func (c *Certificate) times(now time.Time, from, until int64) {
	c.NotBefore, c.NotAfter = show.Moment(from), show.Moment(until)
	c.expires = time.Unix(0, until).Sub(now)
	c.ExpiresInSeconds = int64(c.expires / time.Second)
}

// in says when, in the largest units that tell it.
func in(d time.Duration) string {
	ago := d < 0
	if ago {
		d = -d
	}
	text := d.Round(time.Second).String()
	switch {
	case d >= 48*time.Hour:
		text = fmt.Sprintf("%d days", d/(24*time.Hour))
	case d >= 2*time.Hour:
		text = fmt.Sprintf("%d h", d/time.Hour)
	}
	if ago {
		return text + " ago"
	}
	return "in " + text
}

// Print writes tables, and below them what is not well.
func (r *Report) Print(out io.Writer, color bool) error {
	t := show.NewTable(out, color, "KIND", "NODE", "IDENTITY", "SERIAL", "ISSUER", "KEY", "EXPIRES", "RENEWED")
	paint := func(c Certificate) show.Cell {
		if c.soon || c.Error != "" {
			return show.In(in(c.expires), show.Red)
		}
		return show.Text(in(c.expires))
	}
	for _, c := range r.Authority {
		identity := c.Subject
		if c.Signs {
			identity += " (signs)"
		}
		t.Add(show.Text(c.Kind), show.Text(""), show.Text(identity), show.Text(short(c.Serial)), show.Text(""), show.Text(c.Key), paint(c), show.Text(""))
	}
	for _, k := range r.JWTKeys {
		at := [2]show.Cell{show.Text(""), show.Text("")} // it ends, or is replaced
		if k.State == "retired" {
			at[0] = show.Text(in(k.until))
		} else {
			at[1] = show.Text(in(k.until))
		}
		if k.late {
			at[1] = show.In(in(k.until), show.Red)
		}
		t.Add(show.Text("jwt key"), show.Text(""), show.Text(r.TrustDomain+" ("+k.State+")"), show.Text(short(k.ID)), show.Text(""), show.Text(k.Key), at[0], at[1])
	}
	for _, n := range r.Nodes {
		for _, c := range n.Certificates {
			t.Add(show.Text(c.Kind), show.Text(n.Node), show.Text(c.Identity), show.Text(short(c.Serial)), show.Text(short(c.Issuer)), show.Text(c.Key), paint(c), show.Text(in(c.renews)))
		}
	}
	for _, f := range r.Federation {
		for _, c := range f.Roots {
			t.Add(show.Text(c.Kind), show.Text(""), show.Text(f.TrustDomain), show.Text(short(c.Serial)), show.Text(""), show.Text(c.Key), paint(c), show.Text(""))
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, n := range r.Nodes {
		if n.LeftOut > 0 {
			fmt.Fprintf(out, "and %d more on node %s\n", n.LeftOut, n.Node)
		}
	}
	if r.Rotation.Kind != "" {
		fmt.Fprintln(out, "\n"+r.Rotation.text(false))
	}
	for _, p := range r.Problems {
		fmt.Fprintln(out, show.Painted("✗ ", show.Red, color)+show.Lines(p))
	}
	return nil
}

// short cuts what is only compared by eye.
func short(serial string) string { return serial[:min(len(serial), 12)] }

// text says how far a rotation is; dry, how far it would be.
func (r Rotation) text(dry bool) string {
	if r.Kind == "" {
		if r.Ended == "" {
			return "No rotation is under way."
		}
		return fmt.Sprintf("No rotation is under way; the last one was %s at %s.", r.Ended, r.EndedAt)
	}
	var b strings.Builder
	does := map[string]string{"distribute": "every node gets the new root", "reissue": "every SVID is replaced"}[r.Stage]
	if dry {
		fmt.Fprintf(&b, "A rotation of the %s is possible: %d of %d nodes are ready.", r.Kind, r.Done, r.Nodes)
	} else if r.Aborting {
		fmt.Fprintf(&b, "Rotation of the %s, aborting, stage %s: %s, %d of %d nodes.", r.Kind, r.Stage, does, r.Done, r.Nodes)
	} else {
		fmt.Fprintf(&b, "Rotation of the %s, stage %s: %s, %d of %d nodes.", r.Kind, r.Stage, does, r.Done, r.Nodes)
	}
	if len(r.Waiting) == 0 && !dry {
		b.WriteString(" It goes on in a moment.")
	}
	for _, w := range r.Waiting {
		fmt.Fprintf(&b, "\n  %s %s: %s", w.Part, w.Name, w.Reason)
	}
	if len(r.Without) > 0 {
		fmt.Fprintf(&b, "\n  without: %s", strings.Join(r.Without, ", "))
	}
	return b.String()
}
