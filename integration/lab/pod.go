package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containernetworking/cni/libcni"
	cnibase "github.com/containernetworking/cni/pkg/types"
	cnitypes "github.com/containernetworking/cni/pkg/types/100"
	"golang.org/x/sys/unix"

	"github.com/muslin-net/muslin/internal/backoff"
)

const (
	podInterface = "eth0"
	conflistName = "10-calico.conflist"
	cniBinDir    = "/opt/cni/bin"
	cniCacheDir  = "/var/lib/cni"
)

// pod is a network namespace wired by the CNI plugin. A pod whose space is nil is being made.
type pod struct {
	pod    Pod
	id     string // of its sandbox; another one when it is tried again, as with a container runtime
	space  *space
	path   string // of its network namespace, inside its node
	result *cnitypes.Result
	took   time.Duration // of its last call of CNI, ADD or DEL
	failed chan struct{} // of a pod that could not be made and is not removed yet: closed when it is
}

// conflist is the network configuration of a node, as an installer would write it. Pods get an address of each family
// that has a pool.
func conflist(node string, pools []Pool) string {
	v4, v6 := len(pools) == 0, false
	for _, p := range pools {
		v4, v6 = v4 || p.CIDR.Addr().Is4(), v6 || p.CIDR.Addr().Is6()
	}
	return fmt.Sprintf(`{
  "name": "k8s-pod-network",
  "cniVersion": "1.0.0",
  "plugins": [
    {
      "type": "calico",
      "nodename": %q,
      "log_level": "info",
      "log_file_path": "/var/log/calico/cni/cni.log",
      "mtu": 0,
      "capabilities": {"io.kubernetes.cri.pod-annotations": true},
      "ipam": {"type": "calico-ipam", "assign_ipv4": "%t", "assign_ipv6": "%t"}
    }
  ]
}
`, node, v4, v6)
}

// addPod makes a pod's network namespace on its node and has the CNI plugin wire it. What a failure left is removed before
// the pod can be tried again.
func (s *supervisor) addPod(ctx context.Context, p Pod) (PodStatus, error) {
	if p.Namespace == "" {
		p.Namespace = defaultNamespace
	}
	if err := s.topology.validatePod("pod "+p.id(), p); err != nil {
		return PodStatus{}, err
	}
	m := s.machines[p.Node]
	made, err := s.newPod(ctx, p)
	if err != nil {
		return PodStatus{}, err
	}
	sp, err := newPodSpace(p.id(), m.space, made.path)
	var result *cnitypes.Result
	if err == nil {
		result, err = made.wire(ctx, m)
	}
	if err != nil {
		if sp != nil {
			err = alsoFailed(err, s.discard(ctx, m, made, sp))
		} else {
			s.forget(made)
		}
		return PodStatus{}, fmt.Errorf("add pod %s on %s: %w", p.id(), p.Node, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	made.space, made.result = sp, result
	return made.status(), nil
}

// newPod gives a pod a sandbox of its own, once nothing is left of an earlier one that failed.
func (s *supervisor) newPod(ctx context.Context, p Pod) (*pod, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		taken := s.pods[p.id()]
		if taken == nil {
			break
		}
		if taken.failed == nil {
			return nil, problem(fmt.Sprintf("pod %s exists already", p.id()), "choose another name, or: lab pod del "+p.id())
		}
		s.mu.Unlock()
		select {
		case <-taken.failed:
		case <-ctx.Done():
		}
		s.mu.Lock()
		if ctx.Err() != nil {
			return nil, fmt.Errorf("pod %s: its sandbox before is not removed yet: %w", p.id(), ctx.Err())
		}
	}
	s.sandboxes++
	made := &pod{
		pod: p, id: fmt.Sprintf("lab-%s-%s-%d", p.Namespace, p.Name, s.sandboxes),
		path: filepath.Join(netnsDir, strings.ReplaceAll(p.Namespace+"-"+p.Name, "/", "-")),
	}
	s.pods[p.id()] = made
	return made, nil
}

func (s *supervisor) forget(p *pod) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.pods, p.pod.id())
}

// discard removes what a failed ADD left, as a container runtime does: by the sandbox's own id, and again until that
// succeeds. It returns how the first time ended.
func (s *supervisor) discard(ctx context.Context, m *machine, p *pod, sp *space) error {
	remove := func(ctx context.Context) error {
		if err := p.unwire(ctx, m); err != nil {
			return err
		}
		return dropPodSpace(m, sp, p.path)
	}
	err := remove(context.WithoutCancel(ctx))
	if err == nil {
		s.forget(p)
		return nil
	}
	s.mu.Lock()
	p.failed = make(chan struct{})
	s.mu.Unlock()
	s.running.Go(func() {
		wait := backoff.Backoff{Min: 100 * time.Millisecond, Max: 2 * time.Second}
		for wait.Wait(s.ctx) == nil {
			if err := remove(s.ctx); err != nil {
				s.log.Warn("a sandbox that failed is not removed yet", "pod", p.pod.id(), "sandbox", p.id, "error", err)
				continue
			}
			s.forget(p)
			close(p.failed)
			return
		}
	})
	return err
}

// wire runs CNI ADD.
func (p *pod) wire(ctx context.Context, m *machine) (result *cnitypes.Result, err error) {
	err = m.space.do(func() error {
		cni, network, rt, err := p.cni()
		if err != nil {
			return err
		}
		began := time.Now()
		r, err := cni.AddNetworkList(ctx, network, rt)
		p.took = time.Since(began)
		if err != nil {
			return err
		}
		result, err = cnitypes.NewResultFromResult(r)
		return err
	})
	return result, err
}

// unwire runs CNI DEL.
func (p *pod) unwire(ctx context.Context, m *machine) error {
	return m.space.do(func() error {
		cni, network, rt, err := p.cni()
		if err != nil {
			return err
		}
		began := time.Now()
		defer func() { p.took = time.Since(began) }()
		return cni.DelNetworkList(ctx, network, rt)
	})
}

// delPod ends the pod's programs, runs CNI DEL and removes the namespace. If DEL fails the pod stays, to be deleted again.
// It tells how long CNI DEL took.
func (s *supervisor) delPod(ctx context.Context, id string) (PodStatus, error) {
	s.mu.Lock()
	p, ok := s.pods[id]
	if !ok || p.space == nil {
		s.mu.Unlock()
		return PodStatus{}, problem(fmt.Sprintf("there is no pod %q in lab %s", id, s.config.Name), "see: lab status --name "+s.config.Name)
	}
	sp := p.space
	p.space = nil // nobody else uses or deletes it meanwhile
	s.mu.Unlock()

	m := s.machines[p.pod.Node]
	err := killInside(sp)
	if err == nil {
		err = p.unwire(ctx, m)
	}
	if err == nil {
		err = dropPodSpace(m, sp, p.path)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		p.space = sp
		return PodStatus{}, fmt.Errorf("delete pod %s on %s: %w", id, p.pod.Node, err)
	}
	delete(s.pods, id)
	return p.status(), nil
}

// The calls of CNI that are of no pod's coming and going.
const (
	cniCheck   = "check"
	cniStatus  = "status"
	cniCollect = "gc"
)

// cniCall makes such a call on a pod's node.
func (s *supervisor) cniCall(ctx context.Context, id, call string) error {
	s.mu.Lock()
	p, ok := s.pods[id]
	var valid []cnibase.GCAttachment
	for other, o := range s.pods {
		if ok && other != id && o.pod.Node == p.pod.Node {
			valid = append(valid, cnibase.GCAttachment{ContainerID: o.id, IfName: podInterface})
		}
	}
	s.mu.Unlock()
	if !ok {
		return problem(fmt.Sprintf("there is no pod %q in lab %s", id, s.config.Name), "see: lab status --name "+s.config.Name)
	}
	return s.machines[p.pod.Node].space.do(func() error {
		cni, network, rt, err := p.cni()
		if err != nil {
			return err
		}
		switch call {
		case cniCheck:
			return cni.CheckNetworkList(ctx, network, rt)
		case cniStatus:
			return cni.GetStatusNetworkList(ctx, network)
		}
		return cni.GCNetworkList(ctx, network, &libcni.GCArgs{ValidAttachments: valid})
	})
}

func dropPodSpace(m *machine, sp *space, path string) error {
	defer sp.closeNet()
	return m.space.do(func() error {
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount %s: %w", path, err)
		}
		return os.Remove(path)
	})
}

// cni loads the node's network configuration as a container runtime does. It is called inside the node.
func (p *pod) cni() (*libcni.CNIConfig, *libcni.NetworkConfigList, *libcni.RuntimeConf, error) {
	network, err := libcni.NetworkConfFromFile(filepath.Join(cniConfDir, conflistName))
	if err != nil {
		return nil, nil, nil, fmt.Errorf("read the CNI configuration: %w", err)
	}
	if len(p.pod.Labels) > 0 {
		if network.Plugins[0], err = libcni.InjectConf(network.Plugins[0], map[string]any{"args": cniLabels(p.pod.Labels)}); err != nil {
			return nil, nil, nil, fmt.Errorf("give labels to the CNI plugin: %w", err)
		}
	}
	if len(p.pod.IPv4Pools)+len(p.pod.IPv6Pools) > 0 {
		if network.Plugins[0], err = p.choosingPools(network.Plugins[0]); err != nil {
			return nil, nil, nil, fmt.Errorf("give pools to the CNI plugin: %w", err)
		}
	}
	rt := &libcni.RuntimeConf{
		ContainerID: p.id,
		NetNS:       p.path,
		IfName:      podInterface,
		Args: [][2]string{
			{"IgnoreUnknown", "1"},
			{"K8S_POD_NAMESPACE", p.pod.Namespace},
			{"K8S_POD_NAME", p.pod.Name},
			{"K8S_POD_INFRA_CONTAINER_ID", p.id},
		},
		CapabilityArgs: map[string]any{},
	}
	if len(p.pod.Annotations) > 0 {
		rt.CapabilityArgs["io.kubernetes.cri.pod-annotations"] = p.pod.Annotations
	}
	if len(p.pod.HostPorts) > 0 {
		rt.CapabilityArgs["portMappings"] = p.pod.HostPorts
	}
	return libcni.NewCNIConfigWithCacheDir([]string{cniBinDir}, cniCacheDir, nil), network, rt, nil
}

// choosingPools is the plugin's configuration with the pod's pools in it, for its DEL too: a runtime calls both with the same.
func (p *pod) choosingPools(plugin *libcni.PluginConfig) (*libcni.PluginConfig, error) {
	var conf struct {
		IPAM map[string]any `json:"ipam"`
	}
	if err := json.Unmarshal(plugin.Bytes, &conf); err != nil {
		return nil, err
	}
	conf.IPAM["ipv4_pools"], conf.IPAM["ipv6_pools"] = p.pod.IPv4Pools, p.pod.IPv6Pools
	return libcni.InjectConf(plugin, map[string]any{"ipam": conf.IPAM})
}

// cniLabels has the shape that the CNI conventions give to labels.
func cniLabels(labels map[string]string) map[string]any {
	list := []map[string]string{}
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		list = append(list, map[string]string{"key": k, "value": labels[k]})
	}
	return map[string]any{"cni": map[string]any{"labels": list}}
}

func (p *pod) status() PodStatus {
	st := PodStatus{ID: p.pod.id(), Namespace: p.pod.Namespace, Name: p.pod.Name, Node: p.pod.Node, NetNS: p.path, Took: p.took}
	if p.result == nil {
		return st
	}
	for _, ip := range p.result.IPs {
		if a, ok := netip.AddrFromSlice(ip.Address.IP); ok {
			st.Addresses = append(st.Addresses, a.Unmap())
		}
	}
	if len(p.result.Interfaces) > 0 {
		st.HostInterface = p.result.Interfaces[0].Name
	}
	return st
}

// killInside ends the programs that run in a pod's network namespace.
func killInside(sp *space) error {
	var want unix.Stat_t
	if err := unix.Fstat(int(sp.net.Fd()), &want); err != nil {
		return err
	}
	pids, err := processIDs()
	if err != nil {
		return err
	}
	for _, pid := range pids {
		var st unix.Stat_t
		if pid == os.Getpid() || unix.Stat(fmt.Sprintf("/proc/%d/ns/net", pid), &st) != nil || st.Ino != want.Ino {
			continue
		}
		if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("end process %d in pod %s: %w", pid, sp.name, err)
		}
	}
	return nil
}
