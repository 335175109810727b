package k8s

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"k8s.io/client-go/rest"
)

// Users that the API server knows by a token. Admin may do everything, Typha, a service account, what roles say.
const (
	Admin = "admin"
	Typha = "system:serviceaccount:kube-system:typha"
)

// Server is a running control plane on loopback.
type Server struct {
	dir       string
	binary    string
	etcdPort  int
	port      int
	etcd, api *program
}

// program is a running program.
type program struct {
	cmd  *exec.Cmd
	log  string
	gone chan struct{} // closed when it has ended
}

// Start starts etcd and kube-apiserver with an empty cluster, and waits until they serve. All they keep is in dir.
func Start(ctx context.Context, dir string, progress func(string)) (_ *Server, err error) {
	s := &Server{dir: dir}
	if s.binary, err = Build(ctx, APIServer, progress); err != nil {
		return nil, err
	}
	ports, err := freePorts(3)
	if err != nil {
		return nil, err
	}
	s.etcdPort, s.port = ports[0], ports[1]
	if err := s.writeFiles(); err != nil {
		return nil, err
	}
	url := s.Etcd()
	s.etcd, err = s.start("etcd", "etcd", "--data-dir", filepath.Join(dir, "etcd"), "--unsafe-no-fsync",
		"--listen-client-urls", url, "--advertise-client-urls", url,
		"--listen-peer-urls", fmt.Sprintf("http://127.0.0.1:%d", ports[2]), "--logger", "zap", "--log-level", "warn")
	if err != nil {
		return nil, err
	}
	if err := s.StartAPI(ctx); err != nil {
		return nil, errors.Join(err, s.Stop())
	}
	return s, nil
}

// StartAPI starts kube-apiserver, which must not be running, and waits until it serves.
func (s *Server) StartAPI(ctx context.Context) (err error) {
	key := filepath.Join(s.dir, "service-accounts.key")
	s.api, err = s.start(string(APIServer), s.binary,
		"--etcd-servers", s.Etcd(),
		"--bind-address", "127.0.0.1", "--advertise-address", "127.0.0.1", "--secure-port", fmt.Sprint(s.port),
		"--endpoint-reconciler-type", "none", // it would not have loopback
		"--cert-dir", filepath.Join(s.dir, "certs"), "--token-auth-file", filepath.Join(s.dir, "tokens.csv"),
		"--allow-privileged", "--authorization-mode", "RBAC", "--disable-admission-plugins", "ServiceAccount", // nobody makes service accounts
		"--service-cluster-ip-range", "10.96.0.0/16,fd96::/112",
		"--service-account-issuer", "https://kubernetes.default.svc",
		"--service-account-key-file", key, "--service-account-signing-key-file", key, "--v", "1")
	if err != nil {
		return err
	}
	client, err := rest.HTTPClientFor(s.Config(Admin))
	if err != nil {
		return err
	}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		answer, err := client.Get(s.URL() + "/readyz")
		if err == nil {
			err = answer.Body.Close()
			if answer.StatusCode == http.StatusOK {
				return err
			}
		}
		select {
		case <-tick.C:
		case <-s.api.gone:
			return fmt.Errorf("kube-apiserver ended at once; the end of its log:\n%s", s.api.tail())
		case <-ctx.Done():
			return fmt.Errorf("kube-apiserver is not ready: %w; the end of its log:\n%s", errors.Join(ctx.Err(), err), s.api.tail())
		}
	}
}

// KillAPI ends kube-apiserver at once, and returns when it has ended.
func (s *Server) KillAPI() error { return s.api.kill() }

// Stop ends everything.
func (s *Server) Stop() error {
	var err error
	if s.api != nil {
		err = s.api.kill()
	}
	return errors.Join(err, s.etcd.kill())
}

// URL is where the API is served.
func (s *Server) URL() string { return fmt.Sprintf("https://127.0.0.1:%d", s.port) }

// Etcd is where the API server keeps everything.
func (s *Server) Etcd() string { return fmt.Sprintf("http://127.0.0.1:%d", s.etcdPort) }

// Port is the port of loopback on which the API is served.
func (s *Server) Port() int { return s.port }

// Config is how a user reaches the API.
func (s *Server) Config(user string) *rest.Config {
	return &rest.Config{Host: s.URL(), BearerToken: token(user), TLSClientConfig: rest.TLSClientConfig{Insecure: true}}
}

// Kubeconfig is a kubeconfig file's content for a user, with the API at a port of loopback.
func Kubeconfig(user string, port int) []byte {
	return fmt.Appendf(nil, `apiVersion: v1
kind: Config
clusters: [{name: test, cluster: {server: "https://127.0.0.1:%d", insecure-skip-tls-verify: true}}]
users: [{name: %[2]q, user: {token: %[3]q}}]
contexts: [{name: test, context: {cluster: test, user: %[2]q}}]
current-context: test
`, port, user, token(user))
}

func token(user string) string { return "token-of-" + user }

// writeFiles writes what kube-apiserver reads.
func (s *Server) writeFiles() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	tokens := fmt.Sprintf("%s,%s,%[2]s,system:masters\n%s,%s,%[4]s\n", token(Admin), Admin, token(Typha), Typha)
	return errors.Join(
		os.WriteFile(filepath.Join(s.dir, "service-accounts.key"), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), 0o600),
		os.WriteFile(filepath.Join(s.dir, "tokens.csv"), []byte(tokens), 0o600))
}

// start starts a program, which is killed with this one.
func (s *Server) start(name, path string, args ...string) (_ *program, err error) {
	p := &program{cmd: exec.Command(path, args...), log: filepath.Join(s.dir, name+".log"), gone: make(chan struct{})}
	f, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	p.cmd.Stdout, p.cmd.Stderr = f, f
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go func() {
		// The kernel sends the signal when the thread ends that started the program; this one is kept until then.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := p.cmd.Start()
		started <- err
		if err == nil {
			_ = p.cmd.Wait() // how it ended is in its log
			close(p.gone)
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("starting %s: %w; integration/deps/install installs what tests need", name, err)
	}
	return p, nil
}

func (p *program) kill() error {
	err := p.cmd.Process.Kill()
	<-p.gone
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}

// tail is the end of the program's log.
func (p *program) tail() []byte {
	b, _ := os.ReadFile(p.log)
	return bytes.TrimSpace(b[max(0, len(b)-2000):])
}

// freePorts finds ports that nothing listens on now.
func freePorts(n int) (ports []int, err error) {
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close() // not before all are found
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports, nil
}
