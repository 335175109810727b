//go:build lab

package rulestest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/stretchr/testify/require"
)

type object = map[string]any

// service is a service of Kubernetes with one endpoint.
type service struct {
	name, address, endpoint string
	port, target, nodePort  int
}

// ipvsProxy is the real kube-proxy on the node. It asks an API that is as much of one as it needs, and never changes.
type ipvsProxy struct {
	w       *World
	program []string
	leads   []string // what ipvsadm lists when all is made
	cmd     *exec.Cmd
	said    bytes.Buffer
	ended   chan struct{}
}

// ipvsProxyFor makes a kube-proxy by IPVS for services, which does not run yet.
func (w *World) ipvsProxyFor(program string, services ...service) *ipvsProxy {
	w.t.Helper()
	const node = "node"
	lists := map[string][]object{
		"/api/v1/nodes": {{"metadata": object{"name": node, "uid": node}, "status": object{"addresses": []object{
			{"type": "InternalIP", "address": NodeAddr}, {"type": "InternalIP", "address": strings.Trim(nodeSix, "[]")},
		}}}},
		"/api/v1/services": {}, "/apis/discovery.k8s.io/v1/endpointslices": {}, "/apis/networking.k8s.io/v1/servicecidrs": {},
	}
	add := func(list string, o object) { lists[list] = append(lists[list], o) }
	var leads []string
	for _, s := range services {
		family := map[bool]string{true: "IPv4", false: "IPv6"}[netip.MustParseAddr(s.address).Is4()]
		port := object{"name": "p", "protocol": "TCP", "port": s.port, "targetPort": s.target}
		kind := "ClusterIP"
		if s.nodePort != 0 {
			kind, port["nodePort"] = "NodePort", s.nodePort
			leads = append(leads, fmt.Sprintf(" %s:%d ", NodeAddr, s.nodePort))
		}
		leads = append(leads, " "+net.JoinHostPort(s.address, fmt.Sprint(s.port))+" ")
		add("/api/v1/services", object{
			"metadata": object{"name": s.name, "namespace": "default", "uid": s.name},
			"spec": object{
				"type": kind, "clusterIP": s.address, "clusterIPs": []string{s.address}, "ipFamilies": []string{family},
				"ipFamilyPolicy": "SingleStack", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster", "ports": []object{port},
			},
		})
		add("/apis/discovery.k8s.io/v1/endpointslices", object{
			"metadata":    object{"name": s.name, "namespace": "default", "uid": s.name, "labels": object{"kubernetes.io/service-name": s.name}},
			"addressType": family, "endpoints": []object{{"addresses": []string{s.endpoint}, "conditions": object{"ready": true}}},
			"ports": []object{{"name": "p", "protocol": "TCP", "port": s.target}},
		})
	}
	server := &http.Server{Handler: unchanging(lists), ReadHeaderTimeout: time.Minute}
	w.t.Cleanup(func() { _ = server.Close() })
	var at string
	w.Node.Do(w.t, func() error {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		at = l.Addr().String()
		go func() { _ = server.Serve(l) }()
		return nil
	})
	file := filepath.Join(w.t.TempDir(), "kubeconfig")
	require.NoError(w.t, os.WriteFile(file, []byte(`{"apiVersion": "v1", "kind": "Config", "current-context": "c", "users": [],
		"contexts": [{"name": "c", "context": {"cluster": "c"}}], "clusters": [{"name": "c", "cluster": {"server": "http://`+at+`"}}]}`), 0o600))
	return &ipvsProxy{w: w, leads: leads, program: []string{
		program, "--kubeconfig=" + file, "--hostname-override=" + node, "--proxy-mode=ipvs", "--cluster-cidr=10.0.1.0/24,fd00:1::/64",
		"--conntrack-max-per-core=0", "--conntrack-tcp-timeout-established=0s", "--conntrack-tcp-timeout-close-wait=0s",
	}}
}

// unchanging is an API of lists in which nothing ever happens.
func unchanging(lists map[string][]object) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer := func(code int, o object) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(code)
			_ = json.NewEncoder(w).Encode(o)
		}
		items, list := lists[r.URL.Path]
		asked := r.URL.Query()
		switch {
		case r.Method != http.MethodGet:
			answer(http.StatusCreated, object{}) // events
		case list && asked.Has("sendInitialEvents"): // an old API: clients list, then
			answer(http.StatusBadRequest, object{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "BadRequest", "code": http.StatusBadRequest})
		case list && asked.Has("watch"):
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusOK)
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		case list:
			answer(http.StatusOK, object{"metadata": object{"resourceVersion": "1"}, "items": items})
		case strings.HasPrefix(r.URL.Path, "/api/v1/nodes/"):
			answer(http.StatusOK, lists["/api/v1/nodes"][0])
		default:
			answer(http.StatusNotFound, object{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": http.StatusNotFound})
		}
	})
}

// madeByIPVS matches rules of kube-proxy's, two in each family.
var madeByIPVS = regexp.MustCompile(`-A KUBE-(IPVS-FILTER .* -j REJECT|POSTROUTING .* -j MASQUERADE)`)

// begin starts kube-proxy, and waits until it has made all services, and its rules.
func (p *ipvsProxy) begin() {
	t := p.w.t
	t.Helper()
	p.said.Reset()
	p.cmd, p.ended = exec.Command(p.program[0], p.program[1:]...), make(chan struct{})
	p.cmd.Stdout, p.cmd.Stderr = &p.said, &p.said
	p.w.Node.Do(t, p.cmd.Start)
	go func() { _ = p.cmd.Wait(); close(p.ended) }()
	t.Cleanup(p.end)
	for end := time.Now().Add(10 * time.Minute); ; {
		out, err := p.w.Node.Try("ipvsadm -Ln")
		if err == nil && !slices.ContainsFunc(p.leads, func(lead string) bool { return !strings.Contains(out, lead) }) {
			if out = p.w.Node.Run(t, rulesOfOthers); len(madeByIPVS.FindAllString(out, -1)) == 4 {
				return
			}
		}
		select {
		case <-p.ended:
			require.Fail(t, "kube-proxy has ended", p.said.String())
		case <-time.After(100 * time.Millisecond):
		}
		if time.Now().After(end) {
			p.end()
			require.Fail(t, "kube-proxy has not made all services", "%s\n%s", out, p.said.String())
		}
	}
}

// remove ends it, and has it remove all it made.
func (p *ipvsProxy) remove() {
	p.end()
	_, _ = p.w.Node.Try(strings.Join(p.program, " ") + " --cleanup") // it complains of what it has not made
	require.NotContains(p.w.t, p.w.Node.Run(p.w.t, "ipvsadm -Ln"), "10.96.0.1")
}

// end ends it. What it made stays.
func (p *ipvsProxy) end() {
	select {
	case <-p.ended:
	default:
		_ = p.cmd.Process.Signal(syscall.SIGTERM)
		<-p.ended
	}
}
