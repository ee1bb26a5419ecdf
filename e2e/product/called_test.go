package product

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

// called is something in a pod that is called by who has no identity of the mesh.
type called struct {
	// object is the one that says so, by which enroll and check name it.
	object string
	// pod answers, and port is what takes plaintext by the object that is printed.
	pod  string
	port int
	// answers says whether calls are answered. What is neither is an error.
	answers func(t *testing.T) (bool, error)
}

// testCalled enrolls pods that are called by who has no identity of the mesh: the
// API server calls an admission webhook, and passes requests of `kubectl top` on to what
// is metrics-server here; Prometheus scrapes. An AuthorizationPolicy of the namespace admits
// its own pods alone. `heddle enroll` says so and changes nothing; what it prints, and nothing
// else, keeps them working under STRICT.
func (w *world) testCalled(t *testing.T) {
	w.apply(t, "apiVersion: v1\nkind: Namespace\nmetadata: {name: called}\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: judged}\n"+
		"---\napiVersion: heddle.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: ours, namespace: called}\nspec: {rules: [{from: [{namespaces: [called]}]}]}\n"+
		inNamespace("judged", podYAML("stranger", "n2", "", "wait")))
	guard, meter, scraped := w.deployGuard(t), w.deployMeter(t), w.deployScraped(t)
	for _, namespace := range []string{"called", "judged"} {
		w.kubectl(t, "-n", namespace, "wait", "--for=condition=Ready", "pod", "--all", "--timeout="+patience.String())
	}
	scraped.answers = w.prometheus(t, w.addressOf(t, "scraped")+":8080")
	all := []called{guard, meter, scraped}
	areAnswered(t, "before the mesh", all, true)

	printed, err := w.objectsPrinted(t, "enroll", "called", "--strict")
	if err == nil || strings.Count(printed, "kind: PeerAuthentication") != len(all) || strings.Count(printed, "kind: AuthorizationPolicy") != len(all) {
		t.Fatalf("enroll has not seen all that is called: %v\n%s", err, printed)
	}
	for _, c := range all {
		if name := fmt.Sprintf("name: %s-plaintext-%d\n", c.pod, c.port); strings.Count(printed, name) != 2 {
			t.Errorf("what enroll prints does not have %q twice, for %s:\n%s", name, c.object, printed)
		}
	}
	if label := w.kubectl(t, "get", "namespace", "called", "-o", "jsonpath={.metadata.labels}"); strings.Contains(label, "heddle.dev/mesh") {
		t.Errorf("enroll was refused, and has labelled the namespace: %s", label)
	}

	// It is true: without these objects nobody reaches them any more.
	w.cli(t, "enroll", "called", "--strict", "--force", "--wait")
	areAnswered(t, "STRICT, without what was printed", all, false)
	w.checkNames(t, all, true)
	again, _ := w.objectsPrinted(t, "analyze", "-n", "called", "--fixes") // its status says that there is something
	if again != printed {
		t.Errorf("enroll has printed\n%s\nand analyze prints\n%s", printed, again)
	}

	w.apply(t, printed)
	areAnswered(t, "STRICT, with what was printed", all, true)
	for _, c := range all {
		if out, err := w.Kubectl(t.Context(), "", "-n", "judged", "exec", "stranger", "--", "/program", "once", w.addressOf(t, c.pod)+":7000", marker, "2s"); err == nil {
			t.Errorf("another port of %s is open to plaintext: %s", c.pod, out)
		}
	}
	w.checkNames(t, all, false)
	if again, err := w.objectsPrinted(t, "analyze", "-n", "called", "--fixes"); err != nil || again != "" {
		t.Errorf("with what was printed, there is still %q, %v", again, err)
	}

	w.kubectl(t, "delete", "validatingwebhookconfiguration/guard", "apiservice/"+metricsAPI)
	w.cli(t, "unenroll", "called", "--wait")
	w.kubectl(t, "delete", "namespace", "called", "judged", "--wait=false")
}

// areAnswered waits until calls are answered, or are not.
func areAnswered(t *testing.T, when string, all []called, want bool) {
	t.Helper()
	for _, c := range all {
		eventually(t, patience, fmt.Sprintf("%s: calls by %s are answered: %v", when, c.object, want), func() error {
			answered, err := c.answers(t)
			if err == nil && answered != want {
				err = fmt.Errorf("answered: %v", answered)
			}
			return err
		})
	}
}

// checkNames looks at what `heddle check` says of them.
func (w *world) checkNames(t *testing.T, all []called, cutOff bool) {
	t.Helper()
	out, _ := exec.CommandContext(t.Context(), w.heddle, "check", "--cluster", "--kubeconfig", w.Kubeconfig()).CombinedOutput() // its status is of all that it looks at
	for _, c := range all {
		if strings.Contains(string(out), c.object) != cutOff {
			t.Errorf("cut off: %v; of %s check says:\n%s", cutOff, c.object, out)
		}
	}
}

// inNamespace moves what podYAML makes.
func inNamespace(namespace, pod string) string {
	return strings.Replace(pod, "namespace: shop", "namespace: "+namespace, 1)
}

// addressOf is a pod's of the namespace called.
func (w *world) addressOf(t *testing.T, pod string) string {
	t.Helper()
	return strings.TrimSpace(w.kubectl(t, "-n", "called", "get", "pod", pod, "-o", "jsonpath={.status.podIP}"))
}

// deploySecured runs a pod in a namespace, behind a service of its name, that answers by
// TLS with a certificate, which is returned as a caBundle.
func (w *world) deploySecured(t *testing.T, namespace, name, command string) (bundle string) {
	t.Helper()
	certificate, key := selfSigned(t, name+"."+namespace+".svc")
	bundle = base64.StdEncoding.EncodeToString(certificate)
	w.apply(t, inNamespace(namespace, podYAML(name, "n2", "", command, bundle, base64.StdEncoding.EncodeToString(key)))+fmt.Sprintf(`---
apiVersion: v1
kind: Service
metadata: {name: %s, namespace: %s}
spec: {selector: {app: %[1]s}, ports: [{name: https, port: 443, targetPort: 8443}]}
`, name, namespace))
	return bundle
}

// deployMetricsAPI has a pod of a namespace be the API that metrics-server brings.
func (w *world) deployMetricsAPI(t *testing.T, namespace string) {
	t.Helper()
	w.apply(t, fmt.Sprintf(`apiVersion: apiregistration.k8s.io/v1
kind: APIService
metadata: {name: %s}
spec:
  group: metrics.k8s.io
  version: v1beta1
  groupPriorityMinimum: 100
  versionPriority: 100
  caBundle: %s
  service: {namespace: %s, name: meter}
`, metricsAPI, w.deploySecured(t, namespace, "meter", "measure"), namespace))
}

// deployGuard runs a webhook that judges another namespace's ConfigMaps.
func (w *world) deployGuard(t *testing.T) called {
	t.Helper()
	w.apply(t, `apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata: {name: guard}
webhooks:
- name: guard.called.svc
  clientConfig: {service: {namespace: called, name: guard}, caBundle: `+w.deploySecured(t, "called", "guard", "review")+`}
  rules: [{operations: [CREATE], apiGroups: [""], apiVersions: [v1], resources: [configmaps]}]
  namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: judged}}
  failurePolicy: Fail
  timeoutSeconds: 3
  sideEffects: None
  admissionReviewVersions: [v1]
`)
	create := func(t *testing.T, name string) error {
		_, err := w.Kubectl(t.Context(), "", "-n", "judged", "create", "configmap", name, "--dry-run=server")
		return err
	}
	// It says yes and no, or cannot be called.
	return called{"ValidatingWebhookConfiguration guard", "guard", 8443, func(t *testing.T) (bool, error) {
		refused, taken := create(t, "refused"), create(t, "taken")
		said := fmt.Sprint(refused)
		switch {
		case taken == nil && strings.Contains(said, "the guard says no"):
			return true, nil
		case taken != nil && strings.Contains(said, "failed calling webhook") && strings.Contains(taken.Error(), "failed calling webhook"):
			return false, nil
		}
		return false, fmt.Errorf("refused: %w, taken: %w", refused, taken)
	}}
}

// metricsAPI is the APIService that metrics-server brings.
const metricsAPI = "v1beta1.metrics.k8s.io"

// deployMeter runs what the API server passes requests for metrics on to.
func (w *world) deployMeter(t *testing.T) called {
	t.Helper()
	w.deployMetricsAPI(t, "called")
	return called{"APIService " + metricsAPI, "meter", 8443, func(t *testing.T) (bool, error) {
		// The API server looks again now whether it is there, and not in half a minute.
		w.kubectl(t, "annotate", "--overwrite", "apiservice", metricsAPI, "looked="+time.Now().Format("150405.000"))
		out, err := w.Kubectl(t.Context(), "", "top", "nodes", "--request-timeout=4s")
		switch {
		case err == nil && strings.Contains(out, "250m"):
			return true, nil
		case err != nil && unavailable.MatchString(err.Error()):
			return false, nil
		}
		return false, fmt.Errorf("kubectl top nodes: %w: %s", err, out)
	}}
}

// unavailable is what kubectl says when nobody answers for an API.
var unavailable = regexp.MustCompile("Metrics API not available|unable to handle the request|error trying to reach service|Client.Timeout exceeded|deadline exceeded")

// deployScraped runs a pod that is to be scraped, by its annotations.
func (w *world) deployScraped(t *testing.T) called {
	t.Helper()
	w.apply(t, strings.Replace(inNamespace("called", podYAML("scraped", "n2", "", "serve")), "labels: {",
		`annotations: {prometheus.io/scrape: "true", prometheus.io/port: "8080"}, labels: {`, 1))
	return called{object: "Pod called/scraped", pod: "scraped", port: 8080}
}

// prometheus scrapes a target every second, from the control plane's machine, which is
// in no mesh. What it returns says whether the last time did well.
func (w *world) prometheus(t *testing.T, target string) func(*testing.T) (bool, error) {
	t.Helper()
	const at = "127.0.0.1:9090"
	folder, outside := t.TempDir(), w.node(t, "cp")
	config := fmt.Sprintf("scrape_configs: [{job_name: pods, scrape_interval: 1s, scrape_timeout: 1s, static_configs: [{targets: [%q]}]}]\n", target)
	if err := os.WriteFile(filepath.Join(folder, "prometheus.yml"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("nsenter", "--net="+outside.Netns(), "prometheus", "--config.file="+filepath.Join(folder, "prometheus.yml"),
		"--storage.tsdb.path="+filepath.Join(folder, "data"), "--web.listen-address="+at, "--log.level=warn")
	log := &testenv.Log{}
	cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = log, log, &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	ended := testenv.StartBound(t, cmd)
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended by itself
		<-ended
		if t.Failed() {
			t.Logf("prometheus says:\n%s", log)
		}
	})
	return func(*testing.T) (up bool, err error) {
		err = outside.InNetns(func() error {
			var err error
			up, err = lastScrape(at)
			return err
		})
		return up, err
	}
}

// lastScrape asks a Prometheus in this thread's network namespace.
func lastScrape(at string) (up bool, err error) {
	conn, err := net.DialTimeout("tcp", at, 2*time.Second)
	if err != nil {
		return false, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return false, err
	}
	if _, err := fmt.Fprintf(conn, "GET /api/v1/query?query=up HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", at); err != nil {
		return false, err
	}
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return false, err
	}
	defer response.Body.Close()
	var answer struct {
		Data struct{ Result []struct{ Value [2]any } }
	}
	if err := json.NewDecoder(response.Body).Decode(&answer); err != nil {
		return false, err
	}
	if len(answer.Data.Result) != 1 {
		return false, fmt.Errorf("prometheus has scraped %d targets", len(answer.Data.Result))
	}
	return answer.Data.Result[0].Value[1] == "1", nil
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
