package main

import (
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"runtime/debug"
	"strings"
)

// The parts of an SPDX document that are used here; names are those of the
// specification, version 2.3, sections 6 to 11.
type (
	document struct {
		SPDXVersion       string         `json:"spdxVersion"`
		DataLicense       string         `json:"dataLicense"`
		SPDXID            string         `json:"SPDXID"`
		Name              string         `json:"name"`
		DocumentNamespace string         `json:"documentNamespace"`
		CreationInfo      creation       `json:"creationInfo"`
		Packages          []component    `json:"packages"`
		Relationships     []relationship `json:"relationships"`
	}
	creation struct {
		Created  string   `json:"created"`
		Creators []string `json:"creators"`
	}
	component struct {
		SPDXID           string      `json:"SPDXID"`
		Name             string      `json:"name"`
		VersionInfo      string      `json:"versionInfo"`
		DownloadLocation string      `json:"downloadLocation"`
		FilesAnalyzed    bool        `json:"filesAnalyzed"`
		LicenseConcluded string      `json:"licenseConcluded"`
		LicenseDeclared  string      `json:"licenseDeclared"`
		CopyrightText    string      `json:"copyrightText"`
		Checksums        []checksum  `json:"checksums,omitempty"`
		ExternalRefs     []reference `json:"externalRefs,omitempty"`
	}
	checksum struct {
		Algorithm string `json:"algorithm"`
		Value     string `json:"checksumValue"`
	}
	reference struct {
		Category string `json:"referenceCategory"`
		Type     string `json:"referenceType"`
		Locator  string `json:"referenceLocator"`
	}
	relationship struct {
		Element string `json:"spdxElementId"`
		Type    string `json:"relationshipType"`
		Related string `json:"relatedSpdxElement"`
	}
)

// sbom says what a program was made of, as its own build information has it:
// every module that is linked in, and Go. It depends on nothing but the file, so
// that images are reproducible; the date is the one that images have.
func sbom(program, version, arch, file string) ([]byte, error) {
	info, err := buildinfo.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read what %s was built of: %w", program, err)
	}
	content, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", program, err)
	}
	sum := sha256.Sum256(content)
	digest := hex.EncodeToString(sum[:])
	main := part("Program", program, version, "pkg:golang/"+info.Main.Path+"@"+version+"#cmd/"+program)
	main.Checksums = []checksum{{"SHA256", digest}}
	doc := document{
		SPDXVersion: "SPDX-2.3", DataLicense: "CC0-1.0", SPDXID: "SPDXRef-DOCUMENT", Name: program + "-" + version + "-" + arch,
		DocumentNamespace: "https://github.com/heddle-mesh/heddle/sbom/" + program + "/" + arch + "/" + digest,
		CreationInfo:      creation{Created: "1970-01-01T00:00:00Z", Creators: []string{"Tool: github.com/heddle-mesh/heddle/manifests/images"}},
		Packages:          []component{main},
		Relationships:     []relationship{{"SPDXRef-DOCUMENT", "DESCRIBES", main.SPDXID}},
	}
	goVersion := strings.TrimPrefix(info.GoVersion, "go")
	doc.add(main.SPDXID, part("Go", "stdlib", goVersion, "pkg:golang/stdlib@"+goVersion))
	for i, module := range info.Deps {
		doc.add(main.SPDXID, dependency(i, module))
	}
	text, err := json.MarshalIndent(doc, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("write down what %s was built of: %w", program, err)
	}
	return append(text, '\n'), nil
}

func (d *document) add(of string, c component) {
	d.Packages = append(d.Packages, c)
	d.Relationships = append(d.Relationships, relationship{of, "DEPENDS_ON", c.SPDXID})
}

func dependency(number int, m *debug.Module) component {
	if m.Replace != nil {
		m = m.Replace
	}
	return part(fmt.Sprintf("Module-%d", number), m.Path, m.Version, "pkg:golang/"+m.Path+"@"+m.Version)
}

// part is a component by its package URL. Licences are not in build information,
// and so not asserted.
func part(id, name, version, purl string) component {
	const unknown = "NOASSERTION"
	return component{
		SPDXID: "SPDXRef-" + id, Name: name, VersionInfo: version, DownloadLocation: unknown,
		LicenseConcluded: unknown, LicenseDeclared: unknown, CopyrightText: unknown,
		ExternalRefs: []reference{{"PACKAGE-MANAGER", "purl", purl}},
	}
}
