package explain

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const aliases = `
{apiVersion: v1, kind: Service, metadata: {namespace: shop, name: partner}, spec: {type: ExternalName, externalName: api.partner.example}}
---
{apiVersion: v1, kind: Service, metadata: {namespace: shop, name: store}, spec: {type: ExternalName, externalName: db.shop.svc.cluster.local}}
---
{apiVersion: v1, kind: Service, metadata: {namespace: shop, name: web}, spec: {type: ExternalName, externalName: www.example}}
`

// TestNamesOfHostsOutside: who asks for a name that only DNS knows is told what to ask for.
func TestNamesOfHostsOutside(t *testing.T) {
	dir, _ := view(t)
	if err := os.WriteFile(filepath.Join(dir, "aliases.yaml"), []byte(aliases), 0o600); err != nil {
		t.Fatal(err)
	}
	written, err := ReadFolder(dir, true)
	if err != nil {
		t.Fatal(err)
	}
	written.Cluster = true // a folder's mesh takes no such Services
	m, err := written.Model()
	if err != nil {
		t.Fatal(err)
	}
	for destination, want := range map[string]string{
		"shop/partner:443":                  "destination shop/partner is an ExternalName, another name for api.partner.example, which DNS resolves: write one of the addresses that this resolves to, as ADDRESS:443",
		"partner.shop.svc":                  "as ADDRESS:PORT",
		"shop/store:3306":                   "another name for db.shop.svc.cluster.local, which DNS resolves: write shop/db:3306",
		"store.shop.svc.cluster.local":      "write shop/db",
		"shop/web:80":                       "another name for www.example", // not the pods whose names begin so
		"example.com:443":                   "destination example.com:443: a host outside the mesh is not known by its name: write one of its addresses, as ADDRESS:443",
		"www.example.com:443":               "of a host outside the mesh, one of its own",
		"web.shop.svc.corp.example:80":      "names of cluster.local only",
		"web.none.svc:80":                   `nothing in namespace "none"`,
		"none.shop:80":                      "no Service, pod or Workload has this name",
		"none/x:80":                         "no Service, pod or Workload has this name",
		"partner.shop.svc.cluster.local.:9": "as ADDRESS:9",
	} {
		if _, err := Explain(m, "shop/web-1", destination); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", destination, err, want)
		}
	}
}
