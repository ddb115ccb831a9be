"""What every stage uses: a change here reruns everything."""
