package driver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/muslin-net/muslin/csi/client"
)

// What kubelet adds to the attributes of a volume, if podInfoOnMount is set in the CSIDriver (spec §7.2).
const (
	ownAttributes     = "csi.storage.k8s.io/"
	attributePod      = ownAttributes + "pod.name"
	attributeNS       = ownAttributes + "pod.namespace"
	attributeUID      = ownAttributes + "pod.uid"
	attributeAccount  = ownAttributes + "serviceAccount.name"
	attributeLifetime = ownAttributes + "ephemeral"
)

// NodePublishVolume makes a volume and mounts it for its pod. Asked again for what is there it mends what is missing of it,
// and otherwise leaves it as it is. What it could not finish it takes back: kubelet takes an error for the end of it.
func (d *Driver) NodePublishVolume(_ context.Context, req *csi.NodePublishVolumeRequest) (*csi.NodePublishVolumeResponse, error) {
	it, err := d.asked(req)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	owner, err := d.volumes.home.Load(it.id)
	whole := err == nil
	switch {
	case whole && (owner.UID != it.pod.UID || owner.Namespace != it.pod.Namespace || owner.Name != it.pod.Name):
		return nil, status.Errorf(codes.AlreadyExists, "volume %s belongs to pod %s/%s (uid %s) already", it.id, owner.Namespace, owner.Name, owner.UID)
	case !whole && !errors.Is(err, fs.ErrNotExist):
		d.log.Warn("a record that is of no use is written anew", "error", err)
	}
	if err := run(d.volumes.making(it)); err != nil {
		return nil, d.giveUp(it, whole, err)
	}
	d.log.Info("published", "volume", it.id, "pod", it.pod.Namespace+"/"+it.pod.Name, "uid", it.pod.UID, "target", it.target)
	return &csi.NodePublishVolumeResponse{}, nil
}

// giveUp takes back what was made of a volume, unless its pod may be using it.
func (d *Driver) giveUp(it volume, inUse bool, cause error) error {
	d.log.Error("not published", "volume", it.id, "pod", it.pod.Namespace+"/"+it.pod.Name, "error", cause)
	code := codes.Internal
	if !inUse {
		if err := run(d.volumes.removing(it.id, it.target)); err != nil {
			// The code by which kubelet knows that something may be left, so that it asks for it to be unpublished.
			code, cause = codes.Unavailable, errors.Join(cause, fmt.Errorf("and what was made before is left: %w", err))
		}
	}
	return status.Errorf(code, "volume %s: %v", it.id, cause)
}

// NodeUnpublishVolume removes a volume, or what there is of it.
func (d *Driver) NodeUnpublishVolume(_ context.Context, req *csi.NodeUnpublishVolumeRequest) (*csi.NodeUnpublishVolumeResponse, error) {
	id := req.GetVolumeId()
	if err := client.CheckID(id); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	target, err := d.target(req.GetTargetPath())
	if errors.Is(err, fs.ErrNotExist) {
		target, err = "", nil // its parent is gone, and so is it
	}
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := run(d.volumes.removing(id, target)); err != nil {
		d.log.Error("not unpublished", "volume", id, "error", err)
		return nil, status.Errorf(codes.Internal, "volume %s: %v", id, err)
	}
	d.log.Info("unpublished", "volume", id, "target", req.GetTargetPath())
	return &csi.NodeUnpublishVolumeResponse{}, nil
}

// asked reads a request. Errors name the field, and what to write there.
func (d *Driver) asked(req *csi.NodePublishVolumeRequest) (volume, error) {
	if err := client.CheckID(req.GetVolumeId()); err != nil {
		return volume{}, err
	}
	target, err := d.target(req.GetTargetPath())
	if err != nil {
		return volume{}, err
	}
	switch access := req.GetVolumeCapability().GetAccessType().(type) {
	case nil:
		return volume{}, errors.New("volume_capability: the access type is missing; ask for a mount")
	case *csi.VolumeCapability_Block:
		return volume{}, errors.New("volume_capability: a block device is asked for; the driver has directories only, ask for a mount")
	case *csi.VolumeCapability_Mount:
		if kind := access.Mount.GetFsType(); kind != "" && kind != tmpfsType {
			return volume{}, fmt.Errorf("fsType %q: the driver has no file systems to choose from; leave it out", kind)
		}
	}
	pod, err := owner(req.GetVolumeContext())
	if err != nil {
		return volume{}, err
	}
	if uid := podOf(target); uid != "" && uid != pod.UID {
		return volume{}, fmt.Errorf("attribute %s: %q is not the pod that target_path %s belongs to; set podInfoOnMount: true in CSIDriver %s, "+
			"so that nobody can write these attributes but kubelet", attributeUID, pod.UID, target, Name)
	}
	for key, value := range req.GetVolumeContext() {
		if !strings.HasPrefix(key, ownAttributes) {
			d.log.Warn("an attribute of a volume has no effect", "attribute", key, "value", value, "volume", req.GetVolumeId())
		}
	}
	return volume{id: req.GetVolumeId(), target: target, pod: pod, readOnly: req.GetReadonly()}, nil
}

// owner reads whose a volume is to be.
func owner(attributes map[string]string) (client.Pod, error) {
	for _, key := range []string{attributePod, attributeNS, attributeUID, attributeAccount} {
		if _, there := attributes[key]; !there {
			return client.Pod{}, fmt.Errorf("attribute %s is missing; set podInfoOnMount: true in CSIDriver %s", key, Name)
		}
	}
	if lifetime, there := attributes[attributeLifetime]; there && lifetime != "true" {
		return client.Pod{}, fmt.Errorf("attribute %s: %q; the driver has ephemeral volumes only: name it under the pod's volumes (csi: {driver: %s}), "+
			"not in a PersistentVolume", attributeLifetime, lifetime, Name)
	}
	pod := client.Pod{
		UID: attributes[attributeUID], Name: attributes[attributePod], Namespace: attributes[attributeNS],
		ServiceAccount: attributes[attributeAccount],
	}
	if err := pod.Check(); err != nil {
		return client.Pod{}, fmt.Errorf("attributes %s*: %w", ownAttributes, err)
	}
	return pod, nil
}

// target checks a target path and returns it without symbolic links above its last element, as the kernel's list of mounts
// names it. The error is fs.ErrNotExist's if the path's parent is not there.
func (d *Driver) target(path string) (string, error) {
	switch {
	case path == "":
		return "", errors.New("target_path is missing")
	case !filepath.IsAbs(path), strings.ContainsRune(path, 0), filepath.Clean(path) != strings.TrimSuffix(path, "/"):
		return "", fmt.Errorf("target_path %q: write an absolute path, without . or .. in it", path)
	}
	parent, err := filepath.EvalSymlinks(filepath.Dir(filepath.Clean(path)))
	if err != nil {
		return "", fmt.Errorf("target_path %q: its parent cannot be used: %w", path, err)
	}
	target := filepath.Join(parent, filepath.Base(path))
	for _, own := range []string{d.volumes.home.Mounts, d.volumes.home.Records} {
		if real, err := filepath.EvalSymlinks(own); err == nil {
			own = real
		}
		if within(target, own) || within(own, target) {
			return "", fmt.Errorf("target_path %q would cover %s, where the driver keeps what it has; choose another", path, own)
		}
	}
	return target, nil
}

// within tells whether a path is another one, or below it.
func within(path, other string) bool {
	relative, err := filepath.Rel(other, path)
	return err == nil && relative != ".." && !strings.HasPrefix(relative, "../")
}

// podOf is the uid of the pod that kubelet made a target for, below pods/<uid>/volumes; empty for targets of others.
func podOf(target string) string {
	elements := strings.Split(target, "/")
	for i := 0; i+2 < len(elements); i++ {
		if elements[i] == "pods" && elements[i+2] == "volumes" {
			return elements[i+1]
		}
	}
	return ""
}
