package api

// KeepStatus gives an object the status of the one that it replaces. Users write specs; what a user's file says of status
// is what was true when the file was made.
func KeepStatus(o, old Object) {
	switch o := o.(type) {
	case *IPPool:
		if old, ok := old.(*IPPool); ok {
			o.Status = old.Status.DeepCopy()
		}
	case *BGPConfiguration:
		if old, ok := old.(*BGPConfiguration); ok {
			o.Status = old.Status.DeepCopy()
		}
	case *Node:
		if old, ok := old.(*Node); ok {
			o.Status = *old.Status.DeepCopy()
		}
	}
}
