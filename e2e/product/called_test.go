package product

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// testCalled enrolls the pod of an admission webhook, which the API server calls without
// an identity of the mesh. `heddle enroll` says so and changes nothing; what it prints,
// and nothing else, keeps the webhook working under STRICT.
func (w *world) testCalled(t *testing.T) {
	w.deployGuard(t)
	w.judges(t, "before the mesh", true)

	printed, err := w.objectsPrinted(t, "enroll", "called", "--strict")
	if err == nil || !strings.Contains(printed, "kind: PeerAuthentication") {
		t.Fatalf("enroll has not seen the webhook: %v\n%s", err, printed)
	}
	if label := w.kubectl(t, "get", "namespace", "called", "-o", "jsonpath={.metadata.labels}"); strings.Contains(label, "heddle.dev/mesh") {
		t.Errorf("enroll was refused, and has labelled the namespace: %s", label)
	}

	// It is true: without these objects the API server does not reach it any more.
	w.cli(t, "enroll", "called", "--strict", "--force", "--wait")
	w.judges(t, "STRICT, without what was printed", false)
	again, _ := w.objectsPrinted(t, "analyze", "-n", "called", "--fixes") // its status says that there is something
	if again != printed {
		t.Errorf("enroll has printed\n%s\nand analyze prints\n%s", printed, again)
	}

	w.apply(t, printed)
	w.judges(t, "STRICT, with what was printed", true)
	guard := strings.TrimSpace(w.kubectl(t, "-n", "called", "get", "pod", "guard", "-o", "jsonpath={.status.podIP}"))
	if out, err := w.Kubectl(t.Context(), "", "-n", "judged", "exec", "stranger", "--", "/program", "once", guard+":7000", marker, "3s"); err == nil {
		t.Errorf("another port of the webhook's pod is open to plaintext: %s", out)
	}
	if again, err := w.objectsPrinted(t, "analyze", "-n", "called", "--fixes"); err != nil || again != "" {
		t.Errorf("with what was printed, there is still %q, %v", again, err)
	}

	w.kubectl(t, "delete", "validatingwebhookconfiguration", "guard")
	w.cli(t, "unenroll", "called", "--wait")
	w.kubectl(t, "delete", "namespace", "called", "judged", "--wait=false")
}

// deployGuard runs a webhook in one namespace that judges another one's ConfigMaps.
func (w *world) deployGuard(t *testing.T) {
	t.Helper()
	certificate, key := selfSigned(t, "guard.called.svc")
	authority := base64.StdEncoding.EncodeToString(certificate)
	pod := func(name, namespace string, args ...string) string {
		return strings.Replace(podYAML(name, "n2", "", args...), "namespace: shop", "namespace: "+namespace, 1)
	}
	w.apply(t, "apiVersion: v1\nkind: Namespace\nmetadata: {name: called}\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: judged}\n"+
		pod("guard", "called", "review", authority, base64.StdEncoding.EncodeToString(key))+pod("stranger", "judged", "wait")+`---
apiVersion: v1
kind: Service
metadata: {name: guard, namespace: called}
spec: {selector: {app: guard}, ports: [{port: 443, targetPort: 8443}]}
`)
	for _, namespace := range []string{"called", "judged"} {
		w.kubectl(t, "-n", namespace, "wait", "--for=condition=Ready", "pod", "--all", "--timeout="+patience.String())
	}
	w.apply(t, `apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata: {name: guard}
webhooks:
- name: guard.called.svc
  clientConfig: {service: {namespace: called, name: guard}, caBundle: `+authority+`}
  rules: [{operations: [CREATE], apiGroups: [""], apiVersions: [v1], resources: [configmaps]}]
  namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: judged}}
  failurePolicy: Fail
  timeoutSeconds: 3
  sideEffects: None
  admissionReviewVersions: [v1]
`)
}

// judges waits until the webhook answers, yes and no, or until it cannot be called.
func (w *world) judges(t *testing.T, when string, answers bool) {
	t.Helper()
	create := func(name string) error {
		_, err := w.Kubectl(t.Context(), "", "-n", "judged", "create", "configmap", name, "--dry-run=server")
		return err
	}
	eventually(t, patience, when, func() error {
		refused, taken := create("refused"), create("taken")
		said := fmt.Sprint(refused)
		switch {
		case answers && taken == nil && strings.Contains(said, "the guard says no"):
			return nil
		case !answers && taken != nil && strings.Contains(said, "failed calling webhook") && strings.Contains(taken.Error(), "failed calling webhook"):
			return nil
		}
		return fmt.Errorf("refused: %w, taken: %w", refused, taken)
	})
}

// objectsPrinted runs `heddle` and returns the objects that it prints.
func (w *world) objectsPrinted(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var failed *exec.ExitError
	out, err := exec.CommandContext(t.Context(), w.heddle, append(args, "--kubeconfig", w.Kubeconfig())...).Output()
	if errors.As(err, &failed) {
		t.Logf("heddle %s: %v\n%s%s", strings.Join(args, " "), err, out, failed.Stderr)
	} else if err != nil {
		t.Fatal(err)
	}
	_, objects, _ := strings.Cut(string(out), "---\n")
	return objects, err
}

// selfSigned makes a certificate for a name, and its key, as PEM.
func selfSigned(t *testing.T, name string) (certificate, key []byte) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		BasicConstraintsValid: true, IsCA: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
}
